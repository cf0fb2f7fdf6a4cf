"""All files in the data directory: uploads and keyframes."""
