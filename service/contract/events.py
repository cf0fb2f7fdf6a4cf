"""All that can happen to a job, in order of occurrence, and what it adds up to.

Workers append these to the job's stream, the gateway replays and follows it; no event is built anywhere else.
A stored event's place in the stream is its id: 1, 2, 3 …
"""

from bisect import insort
from collections.abc import Iterable
from datetime import datetime
from operator import attrgetter
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field, TypeAdapter

from service.contract.errors import SharecapError
from service.contract.jobs import (
    DifferentialCaption,
    ErrorInfo,
    Job,
    JobStatus,
    Keyframe,
    Record,
    Timings,
    Usage,
    links_of,
)


class EventBase(BaseModel):
    """`status` is what the job becomes by this event, where it changes; `progress`: the attempt has finished a text."""

    status: ClassVar[JobStatus | None] = None
    progress: ClassVar[bool] = False
    type: str

    def data(self) -> dict[str, Any]:
        """Return the JSON object that clients get as `data:`."""
        return self.model_dump(mode="json", exclude={"type"}, exclude_none=True)


class Queued(EventBase):
    status = JobStatus.QUEUED
    type: Literal["queued"] = "queued"


class Started(EventBase):
    """With `attempt` > 1, text streamed of what is not finished yet is void."""

    status = JobStatus.RUNNING
    type: Literal["started"] = "started"
    attempt: int


class Video(EventBase):
    """The video was opened. `interval_s` is the sampling interval in use, maybe wider than asked for.

    `bytes` and `sha256` are told of a file that was fetched: of an upload they are known before.
    """

    type: Literal["video"] = "video"
    duration_s: float
    width: int
    height: int
    fps: float
    interval_s: float
    bytes: int | None = None
    sha256: str | None = None


class Keyframes(EventBase):
    """Newly chosen keyframes; `complete` with the last."""

    type: Literal["keyframes"] = "keyframes"
    keyframes: list[Keyframe]
    complete: bool


class Delta(EventBase):
    """Text as it is generated: what to add to the text so far of this differential or of the caption."""

    type: Literal["delta"] = "delta"
    of: Literal["differential", "caption"]
    keyframe: int | None = None
    text: str


class Differential(EventBase):
    """Comes in the order of the keyframes, within each shot where the job is `parallel`."""

    progress = True
    type: Literal["differential"] = "differential"
    keyframe: int
    time_s: float
    text: str


class Caption(EventBase):
    """The whole caption. `keyframes_seen`: how many keyframes the fast mode showed to the model."""

    progress = True
    type: Literal["caption"] = "caption"
    text: str
    keyframes_seen: int | None = None


class Completed(EventBase):
    status = JobStatus.COMPLETED
    type: Literal["completed"] = "completed"
    usage: Usage
    timings_s: Timings


class Failed(EventBase):
    status = JobStatus.FAILED
    type: Literal["failed"] = "failed"
    error: ErrorInfo

    @classmethod
    def of(cls, error: SharecapError) -> "Failed":
        return cls(error=ErrorInfo(code=error.code, detail=error.detail, retryable=error.retryable))


class Cancelled(EventBase):
    status = JobStatus.CANCELLED
    type: Literal["cancelled"] = "cancelled"


Event = Annotated[
    Queued | Started | Video | Keyframes | Delta | Differential | Caption | Completed | Failed | Cancelled,
    Field(discriminator="type"),
]
EVENT: TypeAdapter[Event] = TypeAdapter(Event)


LAST_TYPES = frozenset({"completed", "failed", "cancelled"})
"""Types of the events after which none can follow."""


class StoredEvent(BaseModel):
    """An event with its place in the stream (from 1) and the instant the store took it."""

    seq: int
    at: datetime
    event: Event

    @property
    def last(self) -> bool:
        """Whether nothing can follow."""
        return self.event.status is not None and self.event.status.ended


def fold(record: Record, events: Iterable[StoredEvent]) -> Job:
    """Return the job's state after `events`, given from the first one on."""
    job = Job(
        **{name: getattr(record, name) for name in ("id", "kind", "options", "parent", "metadata", "created_at")},
        status=JobStatus.QUEUED,
        source=record.source.model_copy() if record.source else None,
        links=links_of(record.id),
    )
    for stored in events:
        _apply(job, stored)
    return job


def _apply(job: Job, stored: StoredEvent) -> None:
    event = stored.event
    if event.status is not None:
        job.status = event.status
    if stored.last:
        job.finished_at = stored.at
    match event:
        case Started():
            job.attempts = event.attempt
            job.started_at = job.started_at or stored.at
        case Video():
            job.interval_s = event.interval_s
            if job.source is not None:
                for name in ("duration_s", "width", "height", "fps"):
                    setattr(job.source, name, getattr(event, name))
                if event.sha256 is not None:
                    job.source.bytes, job.source.sha256 = event.bytes, event.sha256
        case Keyframes():
            job.keyframes.extend(event.keyframes)
        case Differential():
            told = DifferentialCaption(keyframe=event.keyframe, time_s=event.time_s, text=event.text)
            insort(job.differentials, told, key=attrgetter("keyframe"))
        case Caption():
            job.caption = event.text
            job.keyframes_seen = event.keyframes_seen
        case Completed():
            job.usage, job.timings_s = event.usage, event.timings_s
        case Failed():
            job.error = event.error
