"""Video stages: fetch the file, decode sampled frames, select keyframes."""
