"""The folder that an export writes: built beside its place, and moved there when it is complete."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from sharecap_client.datasets.errors import StoreError

MARK = ".sharecap-export.json"
"""Says that a folder was written by `sharecap export`, so that `--replace` may delete it. Trainers ignore its name."""


@dataclass(frozen=True)
class Target:
    """`folder` is where files are written now, `final` the absolute path under which they will be found."""

    folder: Path
    final: Path

    @contextmanager
    def text(self, name: str) -> Iterator[TextIO]:
        """Write a text file as a whole: UTF-8, LF. If the block fails, an existing file stays as it is."""
        path = self.folder / name
        part = path.with_name(f".{path.name}.part")
        with part.open("w", encoding="utf-8", newline="") as file:
            yield file
        part.replace(path)

    def put(self, name: str, text: str) -> None:
        """Write one small text file."""
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        with self.text(name) as file:
            file.write(text)


@contextmanager
def building(path: Path, replace: bool) -> Iterator[Target]:
    """Build a new folder. It appears under its name when the block ends, and not at all if the block fails.

    Raises StoreError if the path exists and is not an empty folder. With `replace`, an earlier export is replaced.
    """
    _check(path, replace)
    final = path.absolute()
    folder = final.with_name(f".{final.name}.{os.getpid()}.part")
    folder.mkdir(parents=True)
    try:
        yield Target(folder, final)
    except BaseException:
        shutil.rmtree(folder)
        raise
    if final.exists():
        shutil.rmtree(final)
    folder.rename(final)


def mark(target: Target, **facts: Any) -> None:
    """Record what was exported."""
    target.put(MARK, json.dumps(facts, indent=1) + "\n")


def _check(path: Path, replace: bool) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / MARK).is_file():
        raise StoreError(f"{path} exists and is not an export: choose another path")
    if not replace:
        raise StoreError(f"{path} is an earlier export: add --replace to write it again")
