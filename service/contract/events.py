"""The events of a job, in the order in which they occur, and `fold`, which turns them into the job's state.

Workers append events to the job's stream; the gateway replays and follows the stream. All event types are defined
here. The id of a stored event is its position in the stream: 1, 2, 3 …
"""

from bisect import insort
from collections.abc import Iterable
from datetime import datetime
from operator import attrgetter
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, Field, TypeAdapter

from service.contract.errors import SharecapError
from service.contract.jobs import (
    DifferentialCaption,
    ErrorInfo,
    FinishReason,
    JobState,
    JobStatus,
    Keyframe,
    Record,
    Timings,
    Usage,
)


class EventBase(BaseModel):
    """Base of all events.

    `status` is the job's new status, or None if the event does not change it. `progress` is true if the event proves
    that the attempt has finished a text; it resets the count of strikes.
    """

    status: ClassVar[JobStatus | None] = None
    progress: ClassVar[bool] = False
    type: str

    def data(self) -> dict[str, Any]:
        """Return the JSON object that is stored; the event's type is stored next to it."""
        return self.model_dump(mode="json", exclude={"type"}, exclude_none=True)


class Queued(EventBase):
    """The job was accepted. Always the first event."""

    status = JobStatus.QUEUED
    type: Literal["queued"] = "queued"


class Started(EventBase):
    """An attempt has started. If `attempt` > 1, clients discard the deltas of texts that are not finished yet.

    `model` is the name of the worker's model.
    """

    status = JobStatus.RUNNING
    type: Literal["started"] = "started"
    attempt: int
    model: str | None = None


class Fetching(EventBase):
    """Progress of the download of a URL job's video. `total_bytes` is None if the server has not stated the size."""

    type: Literal["fetching"] = "fetching"
    received_bytes: int
    total_bytes: int | None = None


class Video(EventBase):
    """The video was opened. `interval_s` is the sampling interval in use; it can be longer than the requested one.

    `bytes` and `sha256` are set only for a video fetched from a URL; those of an upload are in the job's record.
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
    """Newly selected keyframes. `complete` is true if no more will follow."""

    type: Literal["keyframes"] = "keyframes"
    keyframes: list[Keyframe]
    complete: bool


class Delta(EventBase):
    """A piece of generated text, to be appended to the text so far of this differential or of the caption."""

    type: Literal["delta"] = "delta"
    of: Literal["differential", "caption"]
    keyframe: int | None = None
    text: str


class Differential(EventBase):
    """A finished differential caption. They arrive in keyframe order, or in that order within each shot if the job is
    `parallel`.
    """

    progress = True
    type: Literal["differential"] = "differential"
    keyframe: int
    time_s: float
    text: str
    finish_reason: FinishReason | None = None


class Caption(EventBase):
    """The finished caption. `keyframes_seen` is the number of keyframes shown to the model in fast mode."""

    progress = True
    type: Literal["caption"] = "caption"
    text: str
    finish_reason: FinishReason | None = None
    keyframes_seen: int | None = None


class Completed(EventBase):
    """The job has ended with all its results. The last event."""

    status = JobStatus.COMPLETED
    type: Literal["completed"] = "completed"
    usage: Usage
    timings_s: Timings


class Failed(EventBase):
    """The job has ended with an error; texts that were finished before remain. The last event."""

    status = JobStatus.FAILED
    type: Literal["failed"] = "failed"
    error: ErrorInfo

    @classmethod
    def of(cls, error: SharecapError) -> "Failed":
        return cls(error=ErrorInfo(code=error.code, detail=error.detail, retryable=error.retryable))


class Cancelled(EventBase):
    """The job was cancelled; texts that were finished before remain. The last event."""

    status = JobStatus.CANCELLED
    type: Literal["cancelled"] = "cancelled"


Event = Annotated[
    Queued | Started | Fetching | Video | Keyframes | Delta | Differential | Caption | Completed | Failed | Cancelled,
    Field(discriminator="type"),
]
EVENT: TypeAdapter[Event] = TypeAdapter(Event)
EVENT_CLASSES: tuple[type[EventBase], ...] = get_args(get_args(Event)[0])
FINAL_EVENT_TYPES = frozenset(
    kind.model_fields["type"].default for kind in EVENT_CLASSES if kind.status is not None and kind.status.ended
)
"""Types of the events that end a job. No event follows one of them."""


class StoredEvent(BaseModel):
    """An event with its position in the stream (from 1) and the time at which the store accepted it."""

    seq: int
    at: datetime
    event: Event

    @property
    def last(self) -> bool:
        """Whether this is the job's last event."""
        return self.event.type in FINAL_EVENT_TYPES


def fold(record: Record, events: Iterable[StoredEvent]) -> JobState:
    """Return the job's state after `events`, which must start with the first event of the job."""
    return advance(initial_state(record), events)


def initial_state(record: Record) -> JobState:
    """Return the state of a job without events."""
    names = ("id", "kind", "options", "source", "parent", "metadata", "created_at")
    return JobState(**{name: getattr(record, name) for name in names}, status=JobStatus.QUEUED)


def advance(state: JobState, events: Iterable[StoredEvent]) -> JobState:
    """Return the state after the next `events`. `state` itself does not change."""
    lists = {"keyframes": [*state.keyframes], "differentials": [*state.differentials]}
    job = state.model_copy(update=lists)
    for stored in events:
        _apply(job, stored)
    return job


def _apply(job: JobState, stored: StoredEvent) -> None:
    event = stored.event
    if event.status is not None:
        job.status = event.status
    if stored.last:
        job.finished_at = stored.at
    match event:
        case Started():
            job.attempts, job.model = event.attempt, event.model
            job.started_at = job.started_at or stored.at
        case Video():
            _apply_video(job, event)
        case Keyframes():
            job.keyframes.extend(event.keyframes)
        case Differential():
            differential = DifferentialCaption.model_validate(event.model_dump(exclude={"type"}))
            insort(job.differentials, differential, key=attrgetter("keyframe"))
        case Caption():
            job.caption = event.text
            job.finish_reason = event.finish_reason
            job.keyframes_seen = event.keyframes_seen
        case Completed():
            job.usage, job.timings_s = event.usage, event.timings_s
        case Failed():
            job.error = event.error


def _apply_video(job: JobState, event: Video) -> None:
    job.interval_s = event.interval_s
    if job.source is None:
        return
    video = event.model_dump(include={"duration_s", "width", "height", "fps"})
    fetched = event.model_dump(include={"bytes", "sha256"}) if event.sha256 is not None else {}
    job.source = job.source.model_copy(update=video | fetched)
