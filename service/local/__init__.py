"""Running everything on one machine: the supervisor, the orphan guard and the server commands."""
