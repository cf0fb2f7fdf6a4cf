"""The captioning models: interfaces, model families, loading and generation."""
