"""Where the data directory keeps what is too big for Redis. Names come from the server alone, never from a client."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.contract.errors import StorageFull

PART = ".part"
"""How the name of a file ends that is still coming in."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def upload_path(data_dir: Path, job_id: str) -> Path:
    """The video of a job, as it was uploaded or fetched."""
    return data_dir / "uploads" / _plain(job_id)


def keyframe_path(data_dir: Path, job_id: str, index: int) -> Path:
    """The JPEG of one keyframe."""
    return keyframes_dir(data_dir, job_id) / f"{index}.jpg"


def keyframes_dir(data_dir: Path, job_id: str) -> Path:
    return data_dir / "keyframes" / _plain(job_id)


def _plain(name: str) -> str:
    """Return a name that leads nowhere else. Ids are read back from Redis, which has to be no way to other files."""
    if "/" in name or name in (".", ".."):
        raise ValueError(f"{name!r} is no job's id")
    return name


def keyframe_url(job_id: str, index: int) -> str:
    """The path under which the gateway serves a keyframe."""
    return f"/captions/{job_id}/keyframes/{index}.jpg"


def check_room(data_dir: Path, min_free_bytes: int, more_bytes: int = 0) -> None:
    """Raise StorageFull where `more_bytes` would leave less than `min_free_bytes` of the disk."""
    if shutil.disk_usage(data_dir).free - more_bytes < min_free_bytes:
        raise _no_room()


@contextmanager
def storing() -> Iterator[None]:
    """Turn a full disk into StorageFull."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _no_room() from error
        raise


def sync_names(directory: Path) -> None:
    """Return once the names of the files in `directory` would outlast a power cut."""
    opened = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _no_room() -> StorageFull:
    return StorageFull("There is no room to store the video now; try again later.")
