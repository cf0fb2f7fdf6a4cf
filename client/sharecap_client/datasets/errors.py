"""The error of everything that works on a data set, and how errors of remote file systems become OSError."""

from collections.abc import Iterator
from contextlib import contextmanager

from sharecap_client.errors import SharecapError


class StoreError(SharecapError):
    """The directory is not a store, is in use, or does not fit the request. `detail` says what to do."""


@contextmanager
def os_errors() -> Iterator[None]:
    """Raise OSError for every error of fsspec: each of its file systems has classes of its own, also for a failure to
    connect or to find credentials. An unknown protocol is a ValueError, a missing package an ImportError."""
    try:
        yield
    except (OSError, StoreError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
