"""Files of jobs: uploads and keyframes. No other code touches them."""
