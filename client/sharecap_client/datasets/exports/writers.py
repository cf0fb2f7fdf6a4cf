"""Kinds of files: one text per video, lists in JSON, JSON lines, CSV and Parquet, aligned lines, subtitles.

A writer is a function of the clips and the target. It consumes the clips one by one, so memory does not grow with them.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sharecap_client import formats
from sharecap_client.datasets.exports.clips import Clip
from sharecap_client.datasets.exports.target import Target
from sharecap_client.models import Job, Links, Source

Writer = Callable[[Iterable[Clip], Target], None]
Record = Callable[[Clip, Target], dict[str, Any]]
PARQUET_ROWS = 4096

_LINE_ENDS = re.compile("[\x85\u2028\u2029]")


def captions_beside(folder: str = "") -> Writer:
    """One `x.txt` per video, without a newline at its end: some trainers read each line as a caption."""

    def write(clips: Iterable[Clip], target: Target) -> None:
        for clip in clips:
            target.put(f"{folder}{clip.stem}.txt", clip.caption)

    return write


def json_lines(name: str, record: Record) -> Writer:
    """One JSON object per line."""

    def write(clips: Iterable[Clip], target: Target) -> None:
        with target.text(name) as file:
            for clip in clips:
                file.write(_json(record(clip, target)) + "\n")

    return write


def json_list(name: str, record: Record, also: Callable[[Target], None] = lambda target: None) -> Writer:
    """A JSON list of objects. `also` writes a further file."""

    def write(clips: Iterable[Clip], target: Target) -> None:
        with target.text(name) as file:
            separator = "[\n"
            for clip in clips:
                file.write(separator + _json(record(clip, target)))
                separator = ",\n"
            file.write("\n]\n" if separator == ",\n" else "[]\n")
        also(target)

    return write


def csv_table(name: str, record: Record) -> Writer:
    """A header and one row per clip, quoted as RFC 4180 demands."""

    def write(clips: Iterable[Clip], target: Target) -> None:
        with target.text(name) as file:
            rows = csv.writer(file, lineterminator="\n")
            for number, clip in enumerate(clips):
                values = record(clip, target)
                if not number:
                    rows.writerow(values)
                rows.writerow(values.values())

    return write


def parquet_table(name: str, record: Record, schema: pa.Schema) -> Writer:
    """A Parquet file with these columns."""

    def write(clips: Iterable[Clip], target: Target) -> None:
        with pq.ParquetWriter(target.folder / name, schema) as file:
            for group in _groups((record(clip, target) for clip in clips), PARQUET_ROWS):
                file.write_table(pa.Table.from_pylist(group, schema=schema))

    return write


def aligned_lines(captions: str, videos: str, folder: str) -> Writer:
    """Two files whose lines belong together. Neither a caption nor a name contains a line break."""

    def write(clips: Iterable[Clip], target: Target) -> None:
        with target.text(captions) as caption_file, target.text(videos) as video_file:
            for clip in clips:
                caption_file.write(clip.caption + "\n")
                video_file.write(folder + clip.name + "\n")

    return write


def captions_json(clips: Iterable[Clip], target: Target) -> None:
    """`captions.json` in each folder of videos: base name -> list of captions."""
    begun: set[str] = set()
    for clip in clips:
        path = PurePosixPath(clip.name)
        folder = path.parent.as_posix()
        (target.folder / folder).mkdir(parents=True, exist_ok=True)
        with (target.folder / folder / ".captions.json.part").open("a" if folder in begun else "w") as file:
            file.write(",\n" if folder in begun else "{\n")
            file.write(f"{json.dumps(path.name)}: {json.dumps([clip.caption])}")
        begun.add(folder)
    for folder in begun:
        part = target.folder / folder / ".captions.json.part"
        with part.open("a") as file:
            file.write("\n}\n")
        part.replace(part.with_name("captions.json"))


def rendered(output: formats.Format) -> Writer:
    """One file per video in a format of `sharecap show`."""

    def write(clips: Iterable[Clip], target: Target) -> None:
        for clip in clips:
            target.put(f"{clip.stem}.{output}", formats.render(_job(clip), output))

    return write


def _job(clip: Clip) -> Job:
    """Return the row as the job that it came from, with the caption as it was edited."""
    row = clip.row
    return Job(
        id=row.job or row.id,
        kind="video",
        status=row.state,
        options=json.loads(row.options),
        source=Source(filename=row.id, duration_s=row.duration_s),
        differentials=row.differentials,
        caption=row.text,
        created_at=row.finished_at or datetime.fromtimestamp(0, UTC),
        links=Links(self="", events=""),
    )


def _json(value: Any) -> str:
    """Return JSON in one line, also for readers to whom other characters than LF end a line."""
    text = json.dumps(value, ensure_ascii=False)
    return _LINE_ENDS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _groups(records: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    iterator = iter(records)
    while group := list(islice(iterator, size)):
        yield group
