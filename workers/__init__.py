"""The GPU process: fetch, decode, choose keyframes, caption, publish."""
