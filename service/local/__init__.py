"""Running everything on one machine: supervisor, orphan guard and the server commands of `sharecap`."""
