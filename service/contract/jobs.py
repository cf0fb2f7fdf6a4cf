"""Jobs: the options a client may set, the record written when a job is accepted, and the job's state.

The `Record` is written once and never changes. Everything that happens later is an event, and `contract.events.fold`
builds the `JobState` from the record and its events. Durations are seconds, timestamps are UTC. This module holds
facts only; the gateway adds URLs when it presents a job (`service/presentation.py`).
"""

import secrets
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, model_validator

MAX_TOKENS_LIMIT = 8192
MAX_URL_CHARS = 2048
MAX_KEYFRAMES_LIMIT = 100_000
JOB_ID_PATTERN = r"cap_[0-9a-f]{32}"
"""Regular expression that matches a whole job id; `new_job_id` generates ids of this form."""


class Strict(BaseModel):
    """Base of all options. Unknown fields are errors, so that a misspelt option is not silently ignored.

    The docstring of each option is its description in the API's documentation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


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
    """How the model generates text."""

    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS_LIMIT)] | None = Field(default=None, examples=[200])
    """Maximum length of each text in tokens. Default: 512 for a differential caption, 1024 for other texts."""
    temperature: Annotated[float, Field(ge=0, le=2, examples=[0.7])] = 0.0
    """0 always chooses the most likely token; higher values vary the text."""
    num_beams: Annotated[int, Field(ge=1, le=8, examples=[3])] = 1
    """Number of beams of the beam search. 1 generates without a search."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = Field(default=None, examples=[7])
    """Seed of the random choices if `temperature` is not 0. The same seed gives the same text."""


class JobOptions(Decoding):
    """Options of every job."""

    deadline_s: Annotated[float, Field(gt=0)] | None = Field(default=None, examples=[600.0])
    """The job fails with `deadline_exceeded` if it has not ended this many seconds after its creation. At most the
    server's `MAX_DEADLINE_S` (24 hours by default), which is also the default."""
    webhook_url: Annotated[str, Field(max_length=MAX_URL_CHARS)] | None = Field(
        default=None, examples=["https://hooks.example/captions"]
    )
    """Receives a signed POST request when the job has ended. Needs the server's `WEBHOOK_SECRET`."""


Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]


class VideoOptions(JobOptions):
    """Options of `POST /captions`. None selects the default of the model or the server."""

    mode: Literal["sliding", "fast"] = Field(default="sliding", examples=["fast"])
    """`sliding`: a caption of what changed at each keyframe, then a caption of the whole. `fast`: one caption for all
    keyframes, from a single call of the model."""
    keyframes: Literal["semantic", "interval"] = Field(default="semantic", examples=["interval"])
    """`semantic`: sampled frames that differ enough from the previous keyframe. `interval`: all sampled frames."""
    interval_s: Annotated[float, Field(ge=0.1, le=60, examples=[1.0])] = 2.0
    """Sampling interval in seconds."""
    similarity_threshold: Annotated[float, Field(ge=-1, le=1)] | None = Field(default=None, examples=[0.93])
    """A sampled frame becomes a keyframe if its similarity to the previous keyframe is below this value. Default: that
    of the model that compares frames, 0.93 for CLIP-L."""
    max_keyframes: Annotated[int, Field(ge=1, le=MAX_KEYFRAMES_LIMIT)] | None = Field(default=None, examples=[20])
    """Maximum number of keyframes. The sampling interval is widened until the video cannot have more. At most the
    server's `MAX_KEYFRAMES` (2000 by default), which is also the default."""
    start_s: Annotated[float, Field(ge=0)] | None = Field(default=None, examples=[4.0])
    """Start of the part to caption, in seconds. At most the length of the video. Default: its beginning."""
    end_s: Annotated[float, Field(gt=0)] | None = Field(default=None, examples=[8.0])
    """End of the part to caption, in seconds. At most the end of the video counts, which is also the default."""
    hd_num: Annotated[int, Field(ge=1, le=55)] | None = Field(default=None, examples=[9])
    """Maximum number of high-resolution crops per image. Default: the checkpoint's, else 9 in sliding and 16 in fast
    mode."""
    parallel: bool = Field(default=False, examples=[True])
    """Sliding mode only: split the video into shots and caption the shots independently and concurrently."""
    cut_threshold: Annotated[float, Field(ge=-1, le=1)] | None = Field(default=None, examples=[0.5])
    """With `parallel`: a keyframe whose similarity to the previous one is below this value starts a new shot. Default:
    a value well below `similarity_threshold`."""

    keep_video: bool = Field(default=False, examples=[True])
    """Keep the uploaded video as long as the job, so that it can be played: `GET /captions/{id}/video`."""

    @model_validator(mode="after")
    def _parallel_requires_sliding(self) -> "VideoOptions":
        if self.parallel and self.mode != "sliding":
            raise ValueError("parallel requires mode=sliding")
        return self

    @model_validator(mode="after")
    def _end_is_after_start(self) -> "VideoOptions":
        if self.end_s is not None and self.end_s <= (self.start_s or 0.0):
            raise ValueError("end_s must be greater than start_s")
        return self


class ClipOptions(JobOptions):
    """Options of `POST /captions/{id}/clips`."""

    start_s: Annotated[float, Field(ge=0, examples=[4.0])]
    """Start of the clip in the video, in seconds. At most the length of the video."""
    end_s: Annotated[float, Field(gt=0, examples=[8.0])]
    """End of the clip in the video, in seconds. At most the length of the video."""

    @model_validator(mode="after")
    def _end_is_after_start(self) -> "ClipOptions":
        if self.end_s <= self.start_s:
            raise ValueError("end_s must be greater than start_s")
        return self


class RecaptionOptions(JobOptions):
    """Options of `POST /recaption`."""

    prompt: Annotated[str, Field(min_length=1, max_length=4000, examples=["a red circle turns blue"])]
    """The short prompt that is expanded into a dense caption."""


Options = VideoOptions | ClipOptions | RecaptionOptions


class Source(BaseModel):
    """Where a video came from and its properties, which are None until a worker has opened the video."""

    filename: str | None = None
    url: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    duration_s: float | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None


class Keyframe(BaseModel):
    """A selected frame: its index from 0 and its presentation time in the video.

    `shot` is the index of the shot that the keyframe belongs to; it is always 0 unless the job is `parallel`.
    """

    index: int
    time_s: float
    shot: int = 0


FinishReason = Literal["stop", "length"]
"""Why the model ended a text: it was finished, or the token limit cut it off."""


class DifferentialCaption(BaseModel):
    """Describes what changed between the previous keyframe and this one.

    The first one of a shot describes the shot's first keyframe.
    """

    keyframe: int
    time_s: float
    text: str
    finish_reason: FinishReason | None = None
    """`length` if the text was cut off at the token limit. None if the event was stored before this field existed."""


class ErrorInfo(BaseModel):
    """The error of a failed job."""

    code: str
    detail: str
    retryable: bool


class Usage(BaseModel):
    """Token counts, summed over all model calls of a job. `prompt_tokens` includes `image_tokens`."""

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
    """Seconds that the last attempt spent in each stage, rounded to milliseconds. Stages of a job overlap."""

    queued: Seconds | None = None
    decode: Seconds | None = None
    keyframes: Seconds | None = None
    captioning: Seconds | None = None
    summary: Seconds | None = None


class Record(BaseModel):
    """An accepted request for a job. Written once and never changed."""

    id: Annotated[str, Field(pattern=rf"^{JOB_ID_PATTERN}$")]
    kind: JobKind
    options: Options
    source: Source | None = None
    parent: str | None = None
    """For a clip: the id of the video job whose differential captions the clip summarises."""
    metadata: Metadata = {}
    owner: str | None = None
    """Id of the API key that created the job; None if the job was created without a key."""
    idempotency: str | None = None
    """SHA-256 of the request's `Idempotency-Key`; None if the request had none."""
    created_at: datetime

    @model_validator(mode="before")
    @classmethod
    def _parse_options_by_kind(cls, values: object) -> object:
        if isinstance(values, dict) and isinstance(values.get("options"), dict):
            model = OPTIONS_OF[JobKind(values.get("kind", ""))]
            return {**values, "options": model.model_validate(values["options"])}
        return values


OPTIONS_OF: dict[JobKind, type[Options]] = {
    JobKind.VIDEO: VideoOptions,
    JobKind.CLIP: ClipOptions,
    JobKind.RECAPTION: RecaptionOptions,
}


class JobState(BaseModel):
    """A job at one point in time: its record and everything that its events have reported so far."""

    id: str
    kind: JobKind
    status: JobStatus
    options: Options
    source: Source | None = None
    parent: str | None = None
    interval_s: float | None = None
    """The sampling interval in use. It is longer than the option if `max_keyframes` required it."""
    keyframes: list[Keyframe] = []
    differentials: list[DifferentialCaption] = []
    keyframes_seen: int | None = None
    """In fast mode: the number of keyframes that the model was shown."""
    caption: str | None = None
    finish_reason: FinishReason | None = None
    """`length` if the caption was cut off at the token limit. The differentials have their own."""
    error: ErrorInfo | None = None
    usage: Usage | None = None
    timings_s: Timings | None = None
    model: str | None = None
    """The model of the worker that made the last attempt."""
    attempts: int = 0
    metadata: Metadata = {}
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None


def new_job_id() -> str:
    """Return an id that cannot be guessed: 128 random bits."""
    return f"cap_{secrets.token_hex(16)}"
