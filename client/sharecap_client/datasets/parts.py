"""The Parquet files of a store, `parts/part-00000001.parquet` and so on.

A part appears complete under its name or not at all: it is written to a temporary name, made durable and renamed.
Parts are never changed, only replaced. A row of a later part replaces a row with the same id of an earlier one.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from sharecap_client.datasets.errors import StoreError
from sharecap_client.datasets.manifest import sync_directory
from sharecap_client.datasets.rows import SCHEMA, Row, from_records, to_table

FOLDER = "parts"
BATCH_ROWS = 512
GROUP_ROWS = 4096
OPEN_TRIES = 100
Files = Mapping[int, pa.NativeFile | None]
"""Numbers of parts and their open files. A part without one is opened when it is read."""
T = TypeVar("T")
_NAME = re.compile(r"part-(\d{8})\.parquet")


def part_name(number: int) -> str:
    """Return the name of the file of a part."""
    return f"part-{number:08}.parquet"


def part_numbers(names: Iterable[str]) -> list[int]:
    """Return the numbers of the parts among these file names, in order."""
    return sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match)


class Parts:
    """The parts in the folder `parts` of `directory`."""

    def __init__(self, directory: Path) -> None:
        self.folder = directory / FOLDER

    def numbers(self) -> list[int]:
        """Return the numbers of all parts in order."""
        if not self.folder.is_dir():
            return []
        return part_numbers(path.name for path in self.folder.iterdir())

    def path(self, number: int) -> Path:
        return self.folder / part_name(number)

    def rows_in(self, number: int) -> int:
        """Return how many rows a part has."""
        with damage_explained(self.path(number)):
            return int(pq.read_metadata(self.path(number)).num_rows)

    @contextmanager
    def opened(self) -> Iterator[Files]:
        """Open all parts, as they are at one moment: what another process merges or replaces meanwhile stays readable.

        Raises StoreError if a file cannot be opened.
        """
        for _ in range(OPEN_TRIES):
            numbers = self.numbers()
            with ExitStack() as stack:
                try:
                    files = {number: stack.enter_context(pa.OSFile(str(self.path(number)))) for number in numbers}
                except FileNotFoundError:  # merged into another one
                    continue
                if numbers == self.numbers():
                    yield files
                    return
        raise StoreError(f"{self.folder} cannot be read: files disappear as soon as they are listed")

    def read(
        self, number: int, columns: Sequence[str] | None = None, file: pa.NativeFile | None = None
    ) -> Iterator[Row]:
        """Yield the rows of a part. Columns that are not read have their default; `id`, `video`, `state` always are."""
        wanted = None if columns is None else list(dict.fromkeys(("id", "video", "state", *columns)))
        for batch in self.batches(number, wanted, file):
            yield from from_records(batch.to_pylist())

    def batches(
        self, number: int, columns: Sequence[str] | None = None, file: pa.NativeFile | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the content of a part as record batches of bounded size. Raises StoreError if the file is damaged."""
        path = self.path(number)
        with damage_explained(path), pq.ParquetFile(file or path, pre_buffer=False) as part:
            yield from part.iter_batches(BATCH_ROWS, columns=columns, use_threads=False)

    def write(self, number: int, rows: Iterable[Row]) -> int:
        """Write a part, replacing the one with this number. Returns the number of rows; 0 removes the part."""
        return self._write_tables(number, map(to_table, groups(rows, GROUP_ROWS)))

    def _write_tables(self, number: int, tables: Iterable[pa.Table]) -> int:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(number)
        temporary = path.with_name(f".{path.name}.tmp")
        count = _write_file(temporary, tables)
        if count:
            temporary.replace(path)
        else:
            temporary.unlink()
            path.unlink(missing_ok=True)
        sync_directory(self.folder)
        return count

    def merge(self, numbers: Sequence[int], into: int) -> None:
        """Write the rows of these parts, in order, into the part with the number `into`."""
        self._write_tables(into, self._tables(numbers))

    def _tables(self, numbers: Iterable[int]) -> Iterator[pa.Table]:
        batches = (batch for number in numbers for batch in self.batches(number))
        while group := list(islice(batches, GROUP_ROWS // BATCH_ROWS)):
            if all(batch.schema.equals(SCHEMA) for batch in group):
                yield pa.Table.from_batches(group)
            else:  # written by an older version
                yield to_table([row for batch in group for row in from_records(batch.to_pylist())])

    def remove(self, numbers: Iterable[int]) -> None:
        """Delete parts whose rows are all in another part."""
        for number in numbers:
            self.path(number).unlink(missing_ok=True)

    def remove_temporary(self) -> None:
        """Delete what an interrupted process has left. Nobody else may be writing."""
        for path in self.folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)


@contextmanager
def damage_explained(path: object) -> Iterator[None]:
    """Raise StoreError, which names the file, for what pyarrow raises if the content of a file is not valid.

    That can be an OSError without a number. One with a number is the operating system's.
    """
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        reason = str(error).partition("\n")[0].rstrip(".")
        raise StoreError(f"{path} is damaged: {reason}. If you delete it, its videos are captioned again") from error


def _write_file(path: Path, tables: Iterable[pa.Table]) -> int:
    count = 0
    with path.open("wb") as file:
        with pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table)
                count += table.num_rows
        file.flush()
        os.fsync(file.fileno())
    return count


def groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the items in lists of `size`; the last list can be shorter."""
    group: list[T] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


Change = Callable[[Row], Row | None]
"""Returns the changed row, the same row, or None to remove it."""
