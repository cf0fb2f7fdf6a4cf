"""Sending events to clients: one Redis reader for all streams, server-sent events."""
