"""The position of the newest row of each id, in a temporary SQLite database: memory does not grow with the rows."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple, Self

CACHE_KIB = 1024


PART_BITS = 32
"""A position is the number of a part, shifted by this many bits, and the number of the row in it."""


class Place(NamedTuple):
    """The position of the newest row of an id, and what decides whether it must be captioned again."""

    position: int
    state: str
    attempt: int
    options: str


class Index:
    """Maps ids to places. Close it with `with` or `close`."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)  # "": a temporary file
        self._db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute(
            "CREATE TABLE places (id TEXT PRIMARY KEY, position INTEGER, state TEXT, attempt INTEGER, options TEXT) "
            "WITHOUT ROWID"
        )
        self._db.execute("CREATE TABLE claims (id TEXT PRIMARY KEY, video TEXT) WITHOUT ROWID")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    def get(self, row_id: str) -> Place | None:
        """Return the place of an id, or None."""
        query = "SELECT position, state, attempt, options FROM places WHERE id = ?"
        with closing(self._db.execute(query, (row_id,))) as cursor:
            row = cursor.fetchone()
        return Place(*row) if row else None

    def put(self, entries: Iterator[tuple[str, Place]]) -> None:
        """Add entries. A later entry replaces an earlier one with the same id."""
        self._db.execute("BEGIN")
        self._db.executemany(
            "INSERT OR REPLACE INTO places VALUES (?, ?, ?, ?, ?)", ((row_id, *place) for row_id, place in entries)
        )
        self._db.execute("COMMIT")

    def put_one(self, row_id: str, place: Place) -> None:
        """Add one entry."""
        self._db.execute("INSERT OR REPLACE INTO places VALUES (?, ?, ?, ?, ?)", (row_id, *place))

    def claim(self, row_id: str, video: str) -> str:
        """Return the video that has this id: the first one it was claimed for, which can be this one."""
        self._db.execute("INSERT OR IGNORE INTO claims VALUES (?, ?)", (row_id, video))
        with closing(self._db.execute("SELECT video FROM claims WHERE id = ?", (row_id,))) as cursor:
            return str(cursor.fetchone()[0])

    def counts(self) -> dict[str, int]:
        """Return the number of ids in each state."""
        with closing(self._db.execute("SELECT state, count(*) FROM places GROUP BY state")) as cursor:
            return dict(cursor.fetchall())

    def ids(self, state: str) -> Iterator[str]:
        """Yield the ids in a state."""
        with closing(self._db.execute("SELECT id FROM places WHERE state = ? ORDER BY position", (state,))) as cursor:
            for (row_id,) in cursor:
                yield row_id

    def rows_by_part(self) -> dict[int, int]:
        """Return how many ids have their newest row in each part."""
        query = f"SELECT position >> {PART_BITS} AS part, count(*) FROM places GROUP BY part"
        with closing(self._db.execute(query)) as cursor:
            return dict(cursor.fetchall())


def position(part: int, row: int) -> int:
    """Return the position of a row, counted from 0, in a part."""
    return part << PART_BITS | row
