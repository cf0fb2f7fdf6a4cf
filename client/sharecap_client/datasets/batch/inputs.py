"""What `sharecap batch` is given: files, directories, patterns, tables of paths, standard input; local or by URL.

Everything is read as a stream, in the order in which the file system or the table yields it, so that memory does not
grow with the number of videos.
"""

import glob
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from fsspec.core import url_to_fs

from sharecap_client.datasets.batch.tables import TABLE_SUFFIXES, Columns, read_table
from sharecap_client.datasets.errors import StoreError, os_errors

STDIN = "-"
VIDEO_SUFFIXES = frozenset(
    (
        *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".divx", ".flv", ".f4v", ".gif"),
        *(".ts", ".m2ts", ".mts", ".mpg", ".mpeg", ".m2v", ".vob", ".wmv", ".asf", ".ogv", ".ogg", ".apng"),
        *(".h264", ".264", ".h265", ".265", ".hevc"),
    )
)
"""Files in a directory with these suffixes are videos. A file that is named itself is taken as it is."""
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_PATTERN = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Item:
    """A video to caption. `video` is an absolute path or a URL."""

    id: str
    video: str


@dataclass(frozen=True)
class Inputs:
    """The inputs of a run. `root` is the directory that ids are relative to."""

    names: Sequence[str]
    root: Path
    columns: Columns = Columns()  # noqa: RUF009 (it is frozen)

    @property
    def repeatable(self) -> bool:
        """Whether the inputs can be read again."""
        return STDIN not in self.names

    def __iter__(self) -> Iterator[Item]:
        """Yield all videos. The same video can come more than once. Raises StoreError if an input cannot be read."""
        for name in self.names:
            yield from self._items(name)

    def _items(self, name: str) -> Iterator[Item]:
        if name == STDIN:
            return (self._item(line) for line in _standard_input() if line)
        if Path(name).suffix.lower() in TABLE_SUFFIXES:
            return (Item(row_id, _beside(name, video)) for row_id, video in read_table(name, self.columns))
        if is_url(name):
            return _in_url(name, relative=len(url_bases(self.names)) == 1)
        return (self._item(path) for path in _local(name))

    def _item(self, name: str) -> Item:
        if is_url(name):
            return Item(name, name)
        path = Path(os.path.abspath(name))  # noqa: PTH100 (links keep their names)
        relative = path.relative_to(self.root) if path.is_relative_to(self.root) else path
        return Item(relative.as_posix(), str(path))


def _standard_input() -> Iterator[str]:
    """Yield the lines. `sys.stdin` itself stays unused: Python cannot exit while another thread reads from it."""
    with open(sys.stdin.fileno(), encoding=sys.stdin.encoding, errors=sys.stdin.errors, closefd=False) as lines:
        yield from (line.strip() for line in lines)


def is_url(name: str) -> bool:
    return _URL.match(name) is not None


def is_web(name: str) -> bool:
    """Return whether the service can fetch this video itself."""
    return name.startswith(("http://", "https://"))


def url_bases(names: Iterable[str]) -> list[str]:
    """Return the URLs of all folders among the inputs. Ids are relative to it if it is one only, else whole URLs."""
    urls = (name for name in names if is_url(name) and not is_web(name))
    files = TABLE_SUFFIXES | VIDEO_SUFFIXES
    return [_base(url).rstrip("/") for url in urls if _PATTERN.search(url) or Path(url).suffix.lower() not in files]


def _base(path: str) -> str:
    """Return a path up to the first folder or file that is a pattern."""
    pattern = _PATTERN.search(path)
    return path[: pattern.start()].rpartition("/")[0] if pattern else path


def common_root(names: Iterable[str]) -> Path:
    """Return the directory that contains all local inputs: the input itself if it is the only one and a directory."""
    tops = [_top(name) for name in names if name != STDIN and not is_url(name)]
    return Path(os.path.commonpath(tops)) if tops else Path.cwd()


def _top(name: str) -> Path:
    path = Path(os.path.abspath(name))  # noqa: PTH100
    if path.is_dir():
        return path
    while _PATTERN.search(path.name) or not path.is_dir():
        path = path.parent
        if not _PATTERN.search(str(path)):
            break
    return path


def _local(name: str) -> Iterator[str]:
    if Path(name).is_dir():
        return _in_directory(name)
    if Path(name).exists():
        return iter([name])
    if _PATTERN.search(name):
        return (path for path in _matches(name) if Path(path).is_file())
    raise StoreError(f"{name}: no such file or directory")


def _matches(pattern: str) -> Iterator[str]:
    """Yield the paths that match. `glob` lists a whole folder first, so a pattern in the last part is matched here."""
    folder, last = os.path.split(pattern)
    if _PATTERN.search(folder) or "**" in last or not Path(folder or ".").is_dir():
        yield from glob.iglob(pattern, recursive=True)  # noqa: PTH207 (pathlib takes no absolute pattern)
        return
    with os.scandir(folder or ".") as entries:
        for entry in entries:
            if fnmatch(entry.name, last) and (last.startswith(".") or not entry.name.startswith(".")):
                yield str(Path(folder) / entry.name)


def _in_directory(directory: str, parents: frozenset[tuple[int, int]] = frozenset()) -> Iterator[str]:
    """Yield the videos in a directory and below. Names that start with a dot are skipped.

    `parents` are the device and inode of the directories above: a link that leads back to one of them is skipped.
    """
    try:
        info = os.stat(directory)  # noqa: PTH116
        entries = os.scandir(directory)
    except OSError as error:
        raise StoreError(f"cannot read {directory}: {error.strerror}") from None
    if (info.st_dev, info.st_ino) in parents:
        entries.close()
        return
    parents |= {(info.st_dev, info.st_ino)}
    with entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                yield from _in_directory(entry.path, parents)
            elif Path(entry.name).suffix.lower() in VIDEO_SUFFIXES:
                yield entry.path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _in_url(url: str, *, relative: bool) -> Iterator[Item]:
    """Yield the videos of a URL: itself, the matches of a pattern, or all videos in a directory."""
    if is_web(url):
        yield Item(url, url)
        return
    try:
        with os_errors():
            yield from _remote(url, relative)
    except OSError as error:
        raise StoreError(f"cannot read {url}: {error}") from error


def _remote(url: str, relative: bool) -> Iterator[Item]:
    files, path = url_to_fs(url)
    if _PATTERN.search(path):
        paths = files.glob(path)
    elif files.isdir(path):
        paths = (f"{folder}/{name}" for folder, _, names in files.walk(path) for name in names)
    else:
        yield Item(url, url)
        return
    for one in paths:
        if Path(one).suffix.lower() in VIDEO_SUFFIXES:
            video = files.unstrip_protocol(one)
            yield Item(one.removeprefix(_base(path)).lstrip("/") if relative else video, video)


def _beside(table: str, video: str) -> str:
    """Return the path or URL of a video that a table names relative to itself."""
    if is_url(video) or Path(video).is_absolute():
        return video
    if is_url(table):
        return f"{table.rpartition('/')[0]}/{video}"
    return os.path.abspath(Path(table).parent / video)  # noqa: PTH100
