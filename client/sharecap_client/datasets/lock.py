"""Only one process writes to a store. The lock ends with its process, however that ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sharecap_client.datasets.errors import StoreError

try:
    import fcntl
except ImportError:  # Windows has no such locks; there, it is up to the user
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold the lock of this directory. Raises StoreError if another process holds it."""
    with (directory / NAME).open("a") as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StoreError(f"another process is writing to {directory}") from None
        yield
