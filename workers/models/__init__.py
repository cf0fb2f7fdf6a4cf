"""The models of a worker and how they are loaded and called."""
