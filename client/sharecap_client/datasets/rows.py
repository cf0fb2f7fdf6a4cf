"""A row: one video of a data set with everything that is known about it. The schema of the store's Parquet files.

Both `sharecap batch` and `sharecap ray` write these rows. `SCHEMA` is the only description of the columns on disk. A
test checks that `Row` has the same fields.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from sharecap_client.models import DifferentialCaption, ErrorInfo, Job, JobStatus, Usage

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("video", pa.string(), nullable=False),
        pa.field("state", pa.string(), nullable=False),
        ("caption", pa.string()),
        ("edited", pa.string()),
        ("excluded", pa.string()),
        (
            "differentials",
            pa.list_(
                pa.struct(
                    [
                        ("keyframe", pa.int32()),
                        ("time_s", pa.float64()),
                        ("text", pa.string()),
                        ("finish_reason", pa.string()),
                    ]
                )
            ),
        ),
        ("finish_reason", pa.string()),
        ("keyframe_times_s", pa.list_(pa.float64())),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("fps", pa.float64()),
        ("frames", pa.int64()),
        ("duration_s", pa.float64()),
        ("model", pa.string()),
        ("options", pa.string()),
        ("error", pa.struct([("code", pa.string()), ("detail", pa.string()), ("retryable", pa.bool_())])),
        (
            "usage",
            pa.struct([("prompt_tokens", pa.int64()), ("image_tokens", pa.int64()), ("completion_tokens", pa.int64())]),
        ),
        ("job", pa.string()),
        ("attempt", pa.int32()),
        ("finished_at", pa.timestamp("us", tz="UTC")),
    ]
)


class Row(BaseModel):
    """One video. `state` is the final state of its job.

    `id` is given, or the path relative to the root of the input. `video` is a path or URL. `caption` is the model's own
    text, `edited` the text after `sharecap edit`, if it was edited. `excluded` says why exports leave the row out, for
    example because another caption says the same. `options` is JSON. `job` is the id of the service's job. `attempt`
    counts from 1 how often the video was captioned.
    """

    id: str
    video: str
    state: JobStatus
    caption: str | None = None
    edited: str | None = None
    excluded: str | None = None
    differentials: list[DifferentialCaption] = []
    finish_reason: str | None = None
    keyframe_times_s: list[float] = []
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    frames: int | None = None
    duration_s: float | None = None
    model: str | None = None
    options: str = "{}"
    error: ErrorInfo | None = None
    usage: Usage | None = None
    job: str | None = None
    attempt: int = 1
    finished_at: datetime | None = None

    @property
    def text(self) -> str | None:
        """The caption as exports write it: edited, or the model's own."""
        return self.caption if self.edited is None else self.edited

    @property
    def usable(self) -> bool:
        """Whether exports contain this row: it has a caption and was not excluded."""
        return self.state is JobStatus.COMPLETED and self.text is not None and self.excluded is None


def row_of(job: Job, row_id: str, video: str, options: str, attempt: int = 1) -> Row:
    """Return the row for a job that has ended."""
    source = job.source
    known = source.model_dump(include={"width", "height", "fps", "duration_s"}) if source else {}
    names = {"caption", "finish_reason", "differentials", "error", "usage", "model", "finished_at"}
    results = job.model_dump(include=names)
    return Row(
        id=row_id,
        video=video,
        state=job.status,
        **results,
        **known,
        frames=round(source.fps * source.duration_s) if source and source.fps and source.duration_s else None,
        keyframe_times_s=[keyframe.time_s for keyframe in job.keyframes],
        options=options,
        job=job.id,
        attempt=attempt,
    )


def to_table(rows: Sequence[Row]) -> pa.Table:
    """Return the rows as a table with `SCHEMA`."""
    return pa.Table.from_pylist([row.model_dump(mode="python") for row in rows], schema=SCHEMA)


def from_records(records: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    """Yield the rows of a table or batch that was turned into dictionaries. Missing columns get their default."""
    for record in records:
        yield Row.model_validate({name: value for name, value in record.items() if value is not None})
