"""A video file on its way to keyframes: fetch, decode, frames, keyframes."""
