"""The demo model: its drawn world, its language, its training and its shipped checkpoint."""
