"""The store of a run: a directory with a manifest and Parquet parts, valid at every moment.

    RUN/run.json                      the manifest: options, edits
    RUN/parts/part-00000001.parquet   rows; see `parts.py`
    RUN/.lock                         held by the process that writes

Reading needs no lock: `Store.open(directory).rows()`. Writers use `with Store.open(directory).locked() as store`.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

from pyarrow import NativeFile

from sharecap_client.datasets.errors import StoreError
from sharecap_client.datasets.index import Index, Place, position
from sharecap_client.datasets.lock import exclusive
from sharecap_client.datasets.manifest import Manifest
from sharecap_client.datasets.parts import Change, Files, Parts
from sharecap_client.datasets.rows import Row

INDEX_COLUMNS = ("attempt", "options")
MERGE_PARTS = 8
MAX_PART_ROWS = 100_000
"""Parts are merged with others up to this many rows."""


class Store:
    """The rows of a run. `manifest` is as it was read; change it and call `save`."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory, self.manifest = directory, manifest
        self.parts = Parts(directory)

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Return the store in this directory. Raises StoreError if there is none."""
        manifest = Manifest.load(directory)
        if manifest is None:
            raise StoreError(f"{directory} has no captions yet: `sharecap batch INPUT --out {directory}` makes them")
        return cls(directory, manifest)

    @classmethod
    def create(cls, directory: Path, options: dict[str, Any] | None = None, inputs: Sequence[str] = ()) -> Self:
        """Make an empty store. Raises StoreError if the directory contains something else."""
        directory.mkdir(parents=True, exist_ok=True)
        if any(path.name != ".lock" for path in directory.iterdir()):
            raise StoreError(f"{directory} is not empty and not a store: choose another directory")
        manifest = Manifest(options=options or {}, inputs=list(inputs))
        manifest.save(directory)
        return cls(directory, manifest)

    def save(self) -> None:
        """Write the manifest."""
        self.manifest.save(self.directory)

    @contextmanager
    def locked(self) -> Iterator[Self]:
        """Hold the right to write. Raises StoreError if another process holds it."""
        with exclusive(self.directory):
            self.parts.remove_temporary()
            yield self

    def index(self) -> Index:
        """Return where the newest row of each id is, while the store is locked. Close it after use."""
        return self._index(dict.fromkeys(self.parts.numbers()))

    def _index(self, files: Files) -> Index:
        with ExitStack() as after_error:
            index = after_error.enter_context(Index())
            for number, file in files.items():
                index.put(self._places(number, file))
            after_error.pop_all()
        return index

    def _places(self, number: int, file: NativeFile | None) -> Iterator[tuple[str, Place]]:
        for row_number, row in enumerate(self.parts.read(number, INDEX_COLUMNS, file)):
            yield row.id, Place(position(number, row_number), row.state, row.attempt, row.options)

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[Row]:
        """Yield the newest row of each id, in the order in which they were written. Memory does not grow with them.

        Rows that are written after the first one was read are not seen. With `columns`, only these are read (and `id`,
        `video`, `state`); other fields have their default.
        """
        with self.parts.opened() as files, self._index(files) as index:
            for number, file in files.items():
                yield from self._newest(number, index, columns, file)

    def append(self, rows: Sequence[Row]) -> int:
        """Add a part with these rows and return its number. A row replaces the earlier one with its id."""
        numbers = self.parts.numbers()
        number = numbers[-1] + 1 if numbers else 1
        self.parts.write(number, rows)
        return number

    def rewrite(self, change: Change) -> None:
        """Replace each row by `change(row)`, or remove it if that is None. Each part is replaced as a whole."""
        with self.index() as index:
            for number in self.parts.numbers():
                changed = (change(row) for row in self._newest(number, index))
                self.parts.write(number, (row for row in changed if row is not None))

    def merge_small(self) -> None:
        """Merge the last parts while there are eight of similar size, so that their number stays small."""
        while (numbers := self._similar_tail()) is not None:
            self._merge(numbers)

    def compact(self) -> None:
        """Remove every row that a later one has replaced, and merge small parts."""
        with self.index() as index:
            newest = index.rows_by_part()
            for number in self.parts.numbers():
                if newest.get(number, 0) < self.parts.rows_in(number):
                    self.parts.write(number, self._newest(number, index))
        for numbers in self._small_groups():
            self._merge(numbers)

    def _newest(
        self, number: int, index: Index, columns: Sequence[str] | None = None, file: NativeFile | None = None
    ) -> Iterator[Row]:
        for row_number, row in enumerate(self.parts.read(number, columns, file)):
            place = index.get(row.id)
            if place is not None and place.position == position(number, row_number):
                yield row

    def _small_groups(self) -> list[list[int]]:
        """Return groups of adjacent parts that have at most `MAX_PART_ROWS` rows together."""
        groups: list[list[int]] = []
        rows = MAX_PART_ROWS
        for number in self.parts.numbers():
            size = self.parts.rows_in(number)
            if rows + size > MAX_PART_ROWS:
                groups.append([])
                rows = 0
            groups[-1].append(number)
            rows += size
        return [group for group in groups if len(group) > 1]

    def _similar_tail(self) -> list[int] | None:
        numbers = self.parts.numbers()[-MERGE_PARTS:]
        sizes = list(map(self.parts.rows_in, numbers))
        full = len(numbers) == MERGE_PARTS and sum(sizes) <= MAX_PART_ROWS
        return numbers if full and max(sizes) <= MERGE_PARTS * max(1, min(sizes)) else None

    def _merge(self, numbers: Sequence[int]) -> None:
        """Write the rows of these parts into the last of them. If interrupted, the others only repeat its rows."""
        *others, last = numbers
        self.parts.merge(numbers, last)
        self.parts.remove(others)
