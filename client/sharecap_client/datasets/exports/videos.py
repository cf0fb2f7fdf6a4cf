"""Brings videos into an export: as links, as copies, or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, cast

import fsspec

from sharecap_client.datasets.errors import os_errors

Placement = Literal["link", "copy", "leave"]
"""`link`: symbolic links; videos that are not local files are copied. `leave`: the videos lie in the target already."""

CHUNK_BYTES = 1 << 20


def local_path(video: str) -> Path | None:
    """Return the file that a row's video is, or None if it is not a local file."""
    if video.startswith("file://"):
        return Path(video.removeprefix("file://"))
    return None if "://" in video else Path(video)


def place(video: str, target: Path, placement: Placement) -> None:
    """Link or copy a video to `target`. Raises OSError if it cannot be read."""
    require(video)
    target.parent.mkdir(parents=True, exist_ok=True)
    path = local_path(video)
    if path is None or placement == "copy":
        with open_video(video) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, CHUNK_BYTES)
        return
    try:
        target.symlink_to(path.resolve())
    except (NotImplementedError, PermissionError):  # Windows without the right to make links
        os.link(path, target)


def open_video(video: str) -> AbstractContextManager[BinaryIO]:
    """Open a local or remote video for reading. Raises OSError if it cannot be read."""
    path = local_path(video)
    return path.open("rb") if path else _remote(video)


@contextmanager
def _remote(video: str) -> Iterator[BinaryIO]:
    with os_errors(), fsspec.open(video, "rb") as file:
        yield cast(BinaryIO, file)


def require(video: str) -> None:
    """Raise FileNotFoundError if the video is a local file that does not exist."""
    path = local_path(video)
    if path is not None and not path.is_file():
        raise FileNotFoundError(video)
