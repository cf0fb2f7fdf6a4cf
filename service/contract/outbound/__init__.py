"""HTTP requests to addresses named by clients: SSRF rules and the HTTP client."""
