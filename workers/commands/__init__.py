"""Commands that run on the GPU host without the service."""
