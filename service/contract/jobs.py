"""What a client may ask for, and how a job looks from outside.

`Record` is what is written once, when the job is accepted; everything after that is events, and
`contract.events.fold` turns both into a `Job`. Times are seconds, instants are UTC.
"""

import secrets
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, model_validator

MAX_TOKENS_LIMIT = 8192
MAX_URL_CHARS = 2048


class Strict(BaseModel):
    """Unknown fields are errors: a misspelt option must not be ignored in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class JobKind(StrEnum):
    VIDEO = "video"
    CLIP = "clip"
    RECAPTION = "recaption"


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self not in (JobStatus.QUEUED, JobStatus.RUNNING)


class Decoding(Strict):
    """How text is chosen. `max_tokens` bounds each text; none means the role's own bound."""

    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS_LIMIT)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    num_beams: Annotated[int, Field(ge=1, le=8)] = 1
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None


class JobOptions(Decoding):
    """Options of every job. `deadline_s`: in how long from its creation it must end; none is the server's bound.

    `webhook_url` is told of its end.
    """

    deadline_s: Annotated[float, Field(gt=0)] | None = None
    webhook_url: Annotated[str, Field(max_length=MAX_URL_CHARS)] | None = None


Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]


class VideoOptions(JobOptions):
    """Options of `POST /captions`; none stands for the model's or the server's default."""

    mode: Literal["sliding", "fast"] = "sliding"
    keyframes: Literal["semantic", "interval"] = "semantic"
    interval_s: Annotated[float, Field(ge=0.1, le=60)] = 2.0
    similarity_threshold: Annotated[float, Field(ge=-1, le=1)] | None = None
    max_keyframes: Annotated[int, Field(ge=1, le=100_000)] | None = None
    start_s: Annotated[float, Field(ge=0)] | None = None
    end_s: Annotated[float, Field(gt=0)] | None = None
    hd_num: Annotated[int, Field(ge=1, le=55)] | None = None
    parallel: bool = False
    """Sliding: cut the video into shots and caption each on its own, at the same time as the others."""
    cut_threshold: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Below this similarity a keyframe begins a new shot; none is well below `similarity_threshold`."""

    @model_validator(mode="after")
    def _shots_are_for_sliding(self) -> "VideoOptions":
        if self.parallel and self.mode != "sliding":
            raise ValueError("parallel is for the sliding mode")
        return self

    @model_validator(mode="after")
    def _interval_is_not_empty(self) -> "VideoOptions":
        if self.end_s is not None and self.end_s <= (self.start_s or 0.0):
            raise ValueError("end_s must be greater than start_s")
        return self


class ClipOptions(JobOptions):
    """Options of `POST /captions/{id}/clips`."""

    start_s: Annotated[float, Field(ge=0)]
    end_s: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _interval_is_not_empty(self) -> "ClipOptions":
        if self.end_s <= self.start_s:
            raise ValueError("end_s must be greater than start_s")
        return self


class RecaptionOptions(JobOptions):
    """Options of `POST /recaption`."""

    prompt: Annotated[str, Field(min_length=1, max_length=4000)]


Options = VideoOptions | ClipOptions | RecaptionOptions


class Source(BaseModel):
    """Where a video came from and, once a worker has opened it, what it is."""

    filename: str | None = None
    url: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    duration_s: float | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None


class Keyframe(BaseModel):
    """A chosen frame: its place from 0, its presentation time in the video, and where its JPEG is served.

    `shot`: which shot it belongs to, from 0; always 0 where the job is not `parallel`.
    """

    index: int
    time_s: float
    image: str
    shot: int = 0


class DifferentialCaption(BaseModel):
    """What changed up to keyframe `keyframe` since the one before; the first of a shot describes its first frame."""

    keyframe: int
    time_s: float
    text: str


class ErrorInfo(BaseModel):
    """An error as a job tells it."""

    code: str
    detail: str
    retryable: bool


class Usage(BaseModel):
    """Tokens of all turns of a job together; `image_tokens` are among `prompt_tokens`."""

    prompt_tokens: int = 0
    image_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            image_tokens=self.image_tokens + other.image_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
        )


Seconds = Annotated[float, PlainSerializer(lambda seconds: round(seconds, 3))]


class Timings(BaseModel):
    """Seconds spent in each stage of the last attempt, told to the millisecond; stages of one job overlap."""

    queued: Seconds | None = None
    decode: Seconds | None = None
    keyframes: Seconds | None = None
    captioning: Seconds | None = None
    summary: Seconds | None = None


class Record(BaseModel):
    """What was accepted. Written once; never changed."""

    id: Annotated[str, Field(pattern=r"^cap_[0-9a-f]{32}$")]
    kind: JobKind
    options: VideoOptions | ClipOptions | RecaptionOptions
    source: Source | None = None
    parent: str | None = None
    """For a clip: the job whose differential captions it summarises."""
    metadata: Metadata = {}
    owner: str | None = None
    """Public part of the API key that made the job; none where it was made without one."""
    idempotency: str | None = None
    """SHA-256 of the request's `Idempotency-Key`."""
    created_at: datetime

    @model_validator(mode="before")
    @classmethod
    def _options_by_kind(cls, values: object) -> object:
        if isinstance(values, dict) and isinstance(values.get("options"), dict):
            model = OPTIONS_OF[JobKind(values["kind"])]
            return {**values, "options": model.model_validate(values["options"])}
        return values


OPTIONS_OF: dict[JobKind, type[VideoOptions | ClipOptions | RecaptionOptions]] = {
    JobKind.VIDEO: VideoOptions,
    JobKind.CLIP: ClipOptions,
    JobKind.RECAPTION: RecaptionOptions,
}


class Links(BaseModel):
    self: str
    events: str


def links_of(job_id: str) -> Links:
    return Links(self=f"/captions/{job_id}", events=f"/captions/{job_id}/events")


class Job(BaseModel):
    """A job as the API shows it: the record and all that its events say so far."""

    id: str
    kind: JobKind
    status: JobStatus
    options: VideoOptions | ClipOptions | RecaptionOptions
    source: Source | None = None
    parent: str | None = None
    interval_s: float | None = None
    """The sampling interval that was used: wider than the option where `max_keyframes` asked for it."""
    keyframes: list[Keyframe] = []
    differentials: list[DifferentialCaption] = []
    keyframes_seen: int | None = None
    """In fast mode: how many of the keyframes the model was shown."""
    caption: str | None = None
    error: ErrorInfo | None = None
    usage: Usage | None = None
    timings_s: Timings | None = None
    attempts: int = 0
    metadata: Metadata = {}
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    links: Links


class JobSummary(BaseModel):
    """A job as a list shows it: without its results."""

    id: str
    kind: JobKind
    status: JobStatus
    source: Source | None = None
    parent: str | None = None
    metadata: Metadata = {}
    created_at: datetime
    links: Links


def summary(record: Record, status: JobStatus) -> JobSummary:
    """Return what a list says of a job."""
    names = ("id", "kind", "source", "parent", "metadata", "created_at")
    return JobSummary(**{name: getattr(record, name) for name in names}, status=status, links=links_of(record.id))


def new_job_id() -> str:
    """Return an id that cannot be guessed: 128 random bits."""
    return f"cap_{secrets.token_hex(16)}"
