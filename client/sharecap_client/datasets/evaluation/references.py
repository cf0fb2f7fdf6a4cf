"""Pairs of a caption and its reference: reads the reference file and finds the rows that belong to it."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

from sharecap_client.datasets.errors import StoreError
from sharecap_client.datasets.rows import Row

LAST_S = 1.0
"""How long the last text is in force if the length of the video is not known."""


class TimedText(BaseModel):
    """A text and the time at which it begins to be in force."""

    time_s: float
    text: str


class Reference(BaseModel):
    """One line of the reference file. `events` are given if nobody is to extract them from the caption."""

    id: str
    caption: str
    events: list[str] | None = None
    differentials: list[TimedText] = []
    duration_s: float | None = None


@dataclass(frozen=True)
class Interval:
    """A text and the time in which it is in force."""

    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True)
class Pair:
    """A caption of the run and its reference."""

    reference: Reference
    caption: str
    intervals: Sequence[Interval]
    reference_intervals: Sequence[Interval]


def read_references(path: Path) -> dict[str, Reference]:
    """Return the references of a JSON lines file by id. Raises StoreError that names the line."""
    references: dict[str, Reference] = {}
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    reference = Reference.model_validate(json.loads(line))
                except (ValueError, ValidationError) as error:
                    raise StoreError(f"{path} line {number} is not a reference: {error}") from None
                references[reference.id] = reference
    return references


def pair(rows: Iterable[Row], references: dict[str, Reference]) -> list[Pair]:
    """Return the pairs in the order of the rows. Rows without a caption or without a reference are left out.

    The model's own captions are compared: a trigger word is not an error of the model.
    """
    return [
        _pair(row, reference)
        for row in rows
        if row.caption is not None and (reference := references.get(row.id)) is not None
    ]


def _pair(row: Row, reference: Reference) -> Pair:
    duration_s = row.duration_s or reference.duration_s
    texts = [TimedText(time_s=one.time_s, text=one.text) for one in row.differentials]
    own, other = intervals(texts, duration_s), intervals(reference.differentials, reference.duration_s or duration_s)
    return Pair(reference, row.caption or "", own, other)


def intervals(texts: Sequence[TimedText], duration_s: float | None) -> list[Interval]:
    """Return the time in which each text is in force: until the next one, the last one until the video's end."""
    if not texts:
        return []
    last_s = texts[-1].time_s
    ends_s = [*(text.time_s for text in texts[1:]), max(duration_s or 0, last_s + LAST_S)]
    return [Interval(text.time_s, end_s, text.text) for text, end_s in zip(texts, ends_s, strict=True)]
