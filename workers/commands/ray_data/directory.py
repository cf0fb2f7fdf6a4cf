"""The directory of a run, local or in an object store: the store that `sharecap batch` writes, and Ray's files.

    OUT/run.json                      the manifest
    OUT/parts/part-00000001.parquet   the rows of the store
    OUT/ray/input/                    what Ray reads: id and video of each clip to caption
    OUT/ray/rows/                     what Ray writes: a file for some finished clips
    OUT/ray/checkpoint/               Ray's record of which of these files are complete

`settle` moves the rows of complete files to a part and deletes `ray/`. It runs at the start and at the end of a run, so
what an interrupted run has finished becomes part of the store, and the rest is captioned again.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem
from sharecap_client.datasets.batch.inputs import is_url
from sharecap_client.datasets.edit import Edit, with_edits
from sharecap_client.datasets.errors import StoreError
from sharecap_client.datasets.index import Index, Place, position
from sharecap_client.datasets.lock import exclusive
from sharecap_client.datasets.manifest import NAME, Manifest, sync_directory
from sharecap_client.datasets.parts import BATCH_ROWS, FOLDER, damage_explained, groups, part_name, part_numbers
from sharecap_client.datasets.rows import SCHEMA, Row, from_records, to_table
from sharecap_client.datasets.store import INDEX_COLUMNS, MAX_PART_ROWS, Store

from workers.commands.ray_data.clips import Clip

INPUT_SCHEMA = pa.schema(
    [pa.field("id", pa.string()), pa.field("video", pa.string()), pa.field("attempt", pa.int32())],
)
INPUT_ROWS = 10_000
"""Rows of one file of the input."""


class RunDirectory:
    """A directory of `files`. `name` is what the user calls it, `root` its path in `files`."""

    def __init__(self, name: str) -> None:
        self.name = name
        try:
            if is_url(name):
                self.files, self.root = FileSystem.from_uri(name)
            else:
                self.files, self.root = LocalFileSystem(), os.path.abspath(name)  # noqa: PTH100
                self.files.create_dir(self.root)
        except (OSError, ValueError) as error:  # Arrow's own errors are among them
            raise StoreError(f"cannot write to {name}: {error}") from error

    @property
    def local(self) -> Path | None:
        """The directory, if it is local."""
        return Path(self.root) if isinstance(self.files, LocalFileSystem) else None

    def path(self, *names: str) -> str:
        return "/".join((self.root, *names))

    @contextmanager
    def locked(self) -> Iterator[Self]:
        """Hold the right to write. An object store has no locks; there, it is up to the user."""
        if self.local is None:
            yield self
        else:
            with exclusive(self.local):
                yield self

    def manifest(self) -> Manifest:
        """Return the manifest, or a new one if the directory is empty. Raises StoreError."""
        if self._exists(self.path(NAME)):
            with self.files.open_input_stream(self.path(NAME)) as file:
                return Manifest.parse(file.read(), self.name)
        if set(self._names()) - {".lock"}:
            raise StoreError(f"{self.name} is not empty and not a store: choose another directory")
        return Manifest()

    def save(self, manifest: Manifest) -> None:
        """Write the manifest. Another process sees the old one or the new one."""
        if self.local is not None:
            manifest.save(self.local)
            return
        with self.files.open_output_stream(self.path(NAME)) as file:
            file.write(manifest.content())

    def index(self) -> Index:
        """Return where the newest row of each id is. Close it after use."""
        with ExitStack() as after_error:
            index = after_error.enter_context(Index())
            for number in self.part_numbers():
                index.put(self._places(number))
            after_error.pop_all()
        return index

    def part_numbers(self) -> list[int]:
        return part_numbers(self._names(FOLDER))

    def write_input(self, clips: Iterable[Clip]) -> int:
        """Write what Ray is to caption. Returns the number of clips."""
        count = 0
        for number, group in enumerate(groups(clips, INPUT_ROWS)):
            self.files.create_dir(self.path("ray", "input"))
            table = pa.Table.from_pylist([vars(clip) for clip in group], schema=INPUT_SCHEMA)
            pq.write_table(table, self.path("ray", "input", f"{number:06}.parquet"), filesystem=self.files)
            count += len(group)
        return count

    def finished(self, seen: set[str]) -> Iterator[Row]:
        """Yield the rows of all complete files that Ray has written, except those in `seen`. Adds them to `seen`."""
        for name in self._complete():
            if name not in seen:
                table = self._read(self.path("ray", "rows", name))
                seen.add(name)
                yield from from_records(table.to_pylist())

    def settle(self) -> None:
        """Move the rows of all complete files that Ray has written to parts, and delete everything else of Ray's.

        The run's edits are applied to the rows. If this is interrupted, the next call repeats it. Rows that are then in
        two parts are equal.
        """
        edits = self.manifest().edits
        tables = (_edited(self._read(self.path("ray", "rows", name)), edits) for name in self._complete())
        numbers = self.part_numbers()
        for number, group in enumerate(_grouped_rows(tables), numbers[-1] + 1 if numbers else 1):
            self._write_part(number, group)
        for folder in ("rows", "checkpoint", "input"):
            self._delete(self.path("ray", folder))
        self._delete(self.path("ray"))

    def compact(self) -> None:
        """Remove rows that later ones have replaced. Not done in an object store: readers take the newest."""
        if self.local is not None and self.part_numbers():
            Store.open(self.local).compact()

    def _complete(self) -> Iterator[str]:
        """Yield the names of the complete files in `ray/rows`.

        While `NAME-0.parquet` is being written, its record is called `NAME.pending.parquet`, then `NAME.parquet`.
        """
        complete = {name.removesuffix(".parquet") for name in self._names("ray", "checkpoint")}
        return (name for name in self._names("ray", "rows") if name.rpartition("-")[0] in complete)

    def _places(self, number: int) -> Iterator[tuple[str, Place]]:
        path = self.path(FOLDER, part_name(number))
        with damage_explained(path), self.files.open_input_file(path) as file:
            columns, row_number = ["id", "state", *INDEX_COLUMNS], 0
            for batch in pq.ParquetFile(file).iter_batches(BATCH_ROWS, columns=columns):
                for row in batch.to_pylist():
                    yield row["id"], Place(position(number, row_number), row["state"], row["attempt"], row["options"])
                    row_number += 1

    def _read(self, path: str) -> pa.Table:
        with self.files.open_input_file(path) as file:
            return pq.read_table(file).select(SCHEMA.names).cast(SCHEMA)

    def _write_part(self, number: int, tables: Iterable[pa.Table]) -> None:
        """Write a part, which appears complete or not at all. In an object store, a file does so anyway."""
        path = self.path(FOLDER, part_name(number))
        temporary = path if self.local is None else self.path(FOLDER, f".{part_name(number)}.tmp")
        self.files.create_dir(self.path(FOLDER))
        with pq.ParquetWriter(temporary, SCHEMA, filesystem=self.files, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table)
        if self.local is not None:
            with Path(temporary).open("rb") as file:
                os.fsync(file.fileno())
            Path(temporary).replace(path)
            sync_directory(Path(path).parent)

    def _names(self, *folder: str) -> list[str]:
        infos = self.files.get_file_info(FileSelector(self.path(*folder), allow_not_found=True))
        return sorted(info.base_name for info in infos)

    def _exists(self, path: str) -> bool:
        return bool(self.files.get_file_info(path).type != FileType.NotFound)

    def _delete(self, path: str) -> None:
        if self._exists(path):
            self.files.delete_dir(path)


def _edited(table: pa.Table, edits: Sequence[Edit]) -> pa.Table:
    return to_table([with_edits(row, edits) for row in from_records(table.to_pylist())]) if edits else table


def _grouped_rows(tables: Iterator[pa.Table]) -> Iterator[Iterator[pa.Table]]:
    """Group the tables so that each group has about `MAX_PART_ROWS` rows. Use each group before the next one."""

    def group(first: pa.Table) -> Iterator[pa.Table]:
        rows, table = 0, first
        while table is not None:
            yield table
            rows += table.num_rows
            table = next(tables, None) if rows < MAX_PART_ROWS else None

    while (first := next(tables, None)) is not None:
        yield group(first)
