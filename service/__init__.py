"""The gateway process: HTTP in, events out; imports neither torch nor vLLM."""
