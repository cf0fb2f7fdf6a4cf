"""Reads the paths of videos from a table: JSONL, CSV, TSV or Parquet, local or by URL, one row after the other."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow.parquet as pq

from sharecap_client.datasets.errors import StoreError, os_errors

BATCH_ROWS = 512
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Columns:
    """The columns of a table that name the video and, optionally, the id of each row."""

    video: str = "video"
    id: str | None = None


def read_table(name: str, columns: Columns) -> Iterator[tuple[str, str]]:
    """Yield (id, video) for each row. Without a column for it, the id is the video as the table names it.

    Raises StoreError if the table cannot be read or lacks a column.
    """
    suffix = "." + name.rpartition(".")[2].lower()
    try:
        with os_errors():
            yield from (_pair(name, number, record, columns) for number, record in enumerate(READERS[suffix](name), 1))
    except OSError as error:
        raise StoreError(f"cannot read {name}: {error}") from error


def _pair(name: str, number: int, record: Record, columns: Columns) -> tuple[str, str]:
    video, row_id = record.get(columns.video), record.get(columns.id or columns.video)
    for column, value in ((columns.video, video), (columns.id or columns.video, row_id)):
        if value is None or value == "":
            raise StoreError(
                f"{name}: row {number} has no value in the column `{column}`. It has: {', '.join(record)}. "
                "--video-column and --id-column select other columns"
            )
    return str(row_id), str(video)


def _json_lines(name: str) -> Iterator[Record]:
    for line in _lines(name):
        if line.strip():
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("a line is not a JSON object")
            yield record


def _csv(name: str) -> Iterator[Record]:
    return csv.DictReader(_lines(name))


def _tsv(name: str) -> Iterator[Record]:
    return csv.DictReader(_lines(name), delimiter="\t")


def _lines(name: str) -> Iterator[str]:
    with fsspec.open(name, "r", encoding="utf-8-sig", newline="") as file:
        yield from file


def _parquet(name: str) -> Iterable[Record]:
    with fsspec.open(name, "rb") as file, pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(BATCH_ROWS):
            yield from batch.to_pylist()


READERS: dict[str, Callable[[str], Iterable[Record]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}
TABLE_SUFFIXES = frozenset(READERS)
