"""Bounds on HTTP connections, which hold before the application sees a request or an API key is checked."""
