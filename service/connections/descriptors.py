"""File descriptors: how many connections fit into the process's limit, with the rest kept in reserve."""

import resource


def raise_descriptor_limit() -> None:
    """Raise the limit on open files of this process (`ulimit -n`) to the highest value that it may set itself."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connections_that_fit() -> int:
    """Return half of the limit on open files.

    The other half is the reserve: for Redis, uploads and probes, and for connections that the event loop has accepted
    but not yet handed over, at most a listen queue (`listen_backlog`) at a time.
    """
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2


def listen_backlog() -> int:
    """Return the length of the kernel's queue of new connections: at most half of the reserve."""
    return min(2048, connections_that_fit() // 2)
