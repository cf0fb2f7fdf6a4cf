"""The GPU worker: fetches videos, decodes them, selects keyframes, captions them and publishes events."""
