"""Jobs as the service returns them.

Unknown fields are ignored, so that an older client can talk to a newer service. Times are seconds, instants are UTC.
A test compares these models with the service's OpenAPI document.
"""

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self not in (JobStatus.QUEUED, JobStatus.RUNNING)


class Source(BaseModel):
    """Where a video came from and, once a worker has opened it, its properties."""

    filename: str | None = None
    url: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    duration_s: float | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None


class Keyframe(BaseModel):
    """A keyframe: its index from 0, its time in the video, the path of its JPEG and the shot that it belongs to."""

    index: int
    time_s: float
    image: str
    shot: int = 0


class DifferentialCaption(BaseModel):
    """What changed since the previous keyframe; the first of a shot describes its first frame.

    `finish_reason` is "stop", or "length" if the text was cut off at the token limit.
    """

    keyframe: int
    time_s: float
    text: str
    finish_reason: str | None = None


class ErrorInfo(BaseModel):
    """Why a job failed. `code` is stable; `retryable` says whether sending the job again can help."""

    code: str
    detail: str
    retryable: bool


class Usage(BaseModel):
    """Tokens of all model calls of a job; `image_tokens` are part of `prompt_tokens`."""

    prompt_tokens: int = 0
    image_tokens: int = 0
    completion_tokens: int = 0


class Timings(BaseModel):
    """Seconds spent in each stage of the last attempt. Stages of one job can overlap."""

    queued: float | None = None
    decode: float | None = None
    keyframes: float | None = None
    captioning: float | None = None
    summary: float | None = None


class Links(BaseModel):
    """Paths of the job and of its event stream."""

    self: str
    events: str


class Job(BaseModel):
    """A job with all its results so far."""

    id: str
    kind: str
    status: JobStatus
    options: dict[str, Any] = {}
    source: Source | None = None
    parent: str | None = None
    interval_s: float | None = None
    keyframes: list[Keyframe] = []
    differentials: list[DifferentialCaption] = []
    keyframes_seen: int | None = None
    caption: str | None = None
    finish_reason: str | None = None
    error: ErrorInfo | None = None
    usage: Usage | None = None
    timings_s: Timings | None = None
    model: str | None = None
    attempts: int = 0
    metadata: dict[str, str] = {}
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    title: str = ""
    queue_position: int | None = None
    links: Links


class JobSummary(BaseModel):
    """A job as it appears in a list: without its results."""

    id: str
    kind: str
    status: JobStatus
    title: str = ""
    source: Source | None = None
    parent: str | None = None
    metadata: dict[str, str] = {}
    created_at: datetime
    links: Links


class JobPage(BaseModel):
    """One page of a list of jobs. `cursor` selects the next page; None on the last page."""

    jobs: list[JobSummary]
    cursor: str | None = None


class ClipPage(BaseModel):
    """One page of the clips of a video job, with their results."""

    clips: list[Job]
    cursor: str | None = None


class WebhookNotice(BaseModel):
    """The body of a webhook. `type` is `job.completed`, `job.failed` or `job.cancelled`."""

    type: str
    timestamp: datetime | None = None
    data: Job
