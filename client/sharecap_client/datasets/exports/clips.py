"""What an export contains: the usable rows, each with a name and a caption in one line."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from sharecap_client.datasets.rows import Row
from sharecap_client.models import JobStatus

MAX_NAME_BYTES = 180
"""A longer name is shortened. File systems allow 255 bytes, and trainers add suffixes to names."""

_RESERVED = re.compile(r'[<>:"|?*\\]')


@dataclass(frozen=True)
class Clip:
    """A captioned video of an export. `name` is the video's path in the export's folder of videos, with "/"."""

    row: Row
    name: str
    caption: str

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(self.name).with_suffix("").as_posix()


@dataclass
class Report:
    """How many captions were written, and why rows were left out."""

    written: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


def one_line(text: str) -> str:
    """Return the text with every run of whitespace and control characters as one space."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def reason_to_leave_out(row: Row, needs: Iterable[str]) -> str | None:
    """Return why this row cannot be exported. `needs` are the fields that the format cannot do without."""
    if row.state is not JobStatus.COMPLETED:
        return row.error.code if row.error else row.state.value
    if row.excluded is not None:
        return f"excluded: {row.excluded}"
    if not one_line(row.text or ""):
        return "no caption"
    missing = [name for name in needs if getattr(row, name) is None]
    return f"unknown {', '.join(missing)}" if missing else None


class Names:
    """Gives each video a name that is safe on every file system and that no other video's caption file shares."""

    def __init__(self, flat: bool) -> None:
        self._flat = flat
        self._taken: set[int] = set()

    def choose(self, row: Row) -> str:
        """Return the name: the row's id with the suffix of the video, without folders if the export is flat."""
        suffix = suffix_of(row.video)
        stem = row.id.replace("\\", "/")
        if suffix and stem.lower().endswith(suffix.lower()):
            stem = stem[: -len(suffix)]
        parts = [_safe(part) for part in PurePosixPath(stem).parts if part not in ("/", "..")] or ["video"]
        stem = "__".join(parts) if self._flat else "/".join(parts)
        return self._unused(stem) + suffix.lower()

    def take(self, stem: str) -> bool:
        """Reserve a name without suffix. Returns False if it is taken, also by one that differs in case only."""
        key = unicodedata.normalize("NFC", stem).casefold().encode()
        number = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest())
        taken = number in self._taken
        self._taken.add(number)
        return not taken

    def _unused(self, stem: str) -> str:
        candidate, number = stem, 1
        while not self.take(candidate):
            number += 1
            candidate = f"{stem}-{number}"
        return candidate


def suffix_of(video: str) -> str:
    """Return the suffix of a path or URL, with the dot."""
    return PurePosixPath(urlsplit(video).path if "://" in video else video.replace("\\", "/")).suffix


def _safe(part: str) -> str:
    """Return a part of a path without characters that trainers or file systems cannot handle."""
    part = _RESERVED.sub("_", "".join(char if char.isprintable() else "_" for char in part))
    if part.startswith((".", "__")):  # hidden files, and folders that `datasets` ignores
        part = "_" + part.lstrip("._")
    raw = part.encode()
    if len(raw) > MAX_NAME_BYTES:
        digest = hashlib.blake2b(raw, digest_size=6).hexdigest()
        part = f"{raw[: MAX_NAME_BYTES - 13].decode(errors='ignore')}-{digest}"
    return part.rstrip(". ") or "_"


def usable(rows: Iterable[Row], needs: Iterable[str], report: Report) -> Iterator[Row]:
    """Yield the rows that can be exported, and count the others by reason."""
    for row in rows:
        reason = reason_to_leave_out(row, needs)
        if reason is None:
            yield row
        else:
            report.left_out[reason] += 1
