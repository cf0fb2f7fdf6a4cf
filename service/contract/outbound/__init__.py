"""Outgoing HTTP requests to URLs that clients name: the SSRF rules and the HTTP client."""
