"""The gateway host: accepts requests over HTTP and streams events. It never imports torch or vLLM."""
