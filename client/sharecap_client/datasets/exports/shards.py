"""WebDataset shards: tar files in which `000000042.mp4`, `.txt` and `.json` belong to one sample."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import BinaryIO, Self

from sharecap_client.datasets.exports.clips import Clip
from sharecap_client.datasets.exports.records import webdataset
from sharecap_client.datasets.exports.target import Target
from sharecap_client.datasets.exports.videos import CHUNK_BYTES, open_video

SHARD_BYTES = 1_000_000_000
"""A shard is closed when it is at least this large."""


def webdataset_shards(clips: Iterable[Clip], target: Target) -> None:
    """Write `shard-000000.tar` and so on. Keys are numbers, so no name can break a reader's rules."""
    with Shards(target.folder, SHARD_BYTES) as shards:
        for number, clip in enumerate(clips):
            shards.add(f"{number:09}", clip)


class Shards:
    """Writes samples to the current shard, and begins a new one when it is full."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._number = -1
        self._tar: tarfile.TarFile | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tar is not None:
            self._tar.close()

    def add(self, key: str, clip: Clip) -> None:
        """Add the video, its caption and its facts under one key."""
        tar = self._current()
        suffix = clip.name.rpartition(".")[2] if "." in clip.name else "mp4"
        with open_video(clip.row.video) as video:
            _add(tar, f"{key}.{suffix}", video)
        _add(tar, f"{key}.txt", io.BytesIO(clip.caption.encode()))
        _add(tar, f"{key}.json", io.BytesIO(json.dumps(webdataset(clip), ensure_ascii=False).encode()))

    def _current(self) -> tarfile.TarFile:
        if self._tar is not None and self._tar.offset >= self._max_bytes:
            self._tar.close()
            self._tar = None
        if self._tar is None:
            self._number += 1
            self._tar = tarfile.open(self._folder / f"shard-{self._number:06}.tar", "w")  # noqa: SIM115
        return self._tar


def _add(tar: tarfile.TarFile, name: str, content: BinaryIO) -> None:
    """Add one file. Its size must be known before its content, so a stream without an end is stored first."""
    with TemporaryFile() as buffer:
        if not content.seekable():
            while chunk := content.read(CHUNK_BYTES):
                buffer.write(chunk)
            content = buffer
        member = tarfile.TarInfo(name)
        member.size = content.seek(0, io.SEEK_END)
        content.seek(0)
        tar.addfile(member, content)
