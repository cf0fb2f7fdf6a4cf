"""The `sharecap` command."""
