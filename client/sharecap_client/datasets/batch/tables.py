"""Reads the paths of videos from a table: JSONL, CSV, TSV or Parquet, local or by URL, one row after the other."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow.parquet as pq

from sharecap_client.datasets.errors import StoreError, os_errors

BATCH_ROWS = 512
Record = Mapping[str, Any]
Placed = tuple[str, Record]
"""Where a record is, such as `line 7`, and the record."""


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
            yield from (_pair(name, place, record, columns) for place, record in READERS[suffix](name))
    except OSError as error:
        raise StoreError(f"cannot read {name}: {error}") from error


def _pair(name: str, place: str, record: Record, columns: Columns) -> tuple[str, str]:
    video, row_id = record.get(columns.video), record.get(columns.id or columns.video)
    for column, value in ((columns.video, video), (columns.id or columns.video, row_id)):
        if value is None or value == "":
            raise StoreError(
                f"{name}: {place} has no value in the column `{column}`. It has: {', '.join(record)}. "
                "--video-column and --id-column select other columns"
            )
    return str(row_id), str(video)


def _json_lines(name: str) -> Iterator[Placed]:
    for number, line in enumerate(_lines(name), 1):
        if line.strip():
            yield f"line {number}", _object(line, f"{name}: line {number}")


def _object(line: str, place: str) -> Record:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise StoreError(f"{place} is not JSON: {error}") from None
    if not isinstance(record, dict):
        raise StoreError(f"{place} is not a JSON object")
    return record


def _csv(name: str, delimiter: str = ",") -> Iterator[Placed]:
    table = csv.DictReader(_lines(name), delimiter=delimiter)
    for record in table:
        yield f"line {table.line_num}", record


def _tsv(name: str) -> Iterator[Placed]:
    return _csv(name, "\t")


def _lines(name: str) -> Iterator[str]:
    with fsspec.open(name, "r", encoding="utf-8-sig", newline="") as file:
        yield from file


def _parquet(name: str) -> Iterator[Placed]:
    with fsspec.open(name, "rb") as file, pq.ParquetFile(file) as parquet:
        records = (record for batch in parquet.iter_batches(BATCH_ROWS) for record in batch.to_pylist())
        for number, record in enumerate(records, 1):
            yield f"row {number}", record


READERS: dict[str, Callable[[str], Iterator[Placed]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}
TABLE_SUFFIXES = frozenset(READERS)
