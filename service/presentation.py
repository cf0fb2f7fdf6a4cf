"""How the API presents stored jobs and events: the stored facts plus the paths of related resources.

Stored data holds no URLs. Routes, event streams and webhooks add them here, so a stored job or event can be served
under other paths without being rewritten.
"""

import json
from datetime import datetime
from textwrap import shorten

from pydantic import BaseModel, Field

from service.contract.events import Keyframes
from service.contract.jobs import (
    ClipOptions,
    JobKind,
    JobState,
    JobStatus,
    Keyframe,
    Metadata,
    Options,
    RecaptionOptions,
    Record,
    Source,
)

MAX_TITLE_CHARS = 60
LONGEST_CLOCK_S = 999 * 3600.0
KEYFRAMES_TYPE = Keyframes.model_fields["type"].default


class Links(BaseModel):
    """Paths of a job and of its event stream."""

    self: str
    events: str


class KeyframeImage(BaseModel):
    """A keyframe with the path of its JPEG image. `shot` is 0 unless the job is `parallel`."""

    index: int
    time_s: float
    image: str
    shot: int


class Job(JobState):
    """A job with all its results so far.

    `title` is short: the name of the file, the part of the video, or the first words of the prompt. `queue_position`
    counts, from 1, those of the API key's jobs that wait for a worker; it is set only while the job is one of them.
    """

    keyframes: list[KeyframeImage] = Field(default_factory=list)  # type: ignore[assignment]  # in the API's order
    title: str
    queue_position: int | None = None
    links: Links


class JobSummary(BaseModel):
    """A job as it appears in a list: without its results."""

    id: str
    kind: JobKind
    status: JobStatus
    title: str
    source: Source | None = None
    parent: str | None = None
    metadata: Metadata = {}
    created_at: datetime
    links: Links


def job_path(job_id: str) -> str:
    return f"/captions/{job_id}"


def links(job_id: str) -> Links:
    return Links(self=job_path(job_id), events=f"{job_path(job_id)}/events")


def keyframe_image(job_id: str, keyframe: Keyframe) -> KeyframeImage:
    image = f"{job_path(job_id)}/keyframes/{keyframe.index}.jpg"
    return KeyframeImage(index=keyframe.index, time_s=keyframe.time_s, image=image, shot=keyframe.shot)


def title_of(options: Options, source: Source | None) -> str:
    """Return a short title of a job: the file's name, the part of a video, or the first words of the prompt."""
    match options:
        case RecaptionOptions():
            return shorten(options.prompt, MAX_TITLE_CHARS, placeholder="…") or options.prompt[:MAX_TITLE_CHARS]
        case ClipOptions():
            return f"Part {_part(options.start_s, options.end_s)}"
    name = (source and (source.filename or source.url)) or "Video"
    whole = options.start_s is None and options.end_s is None
    return name if whole else f"{name}, {_part(options.start_s or 0, options.end_s)}"


def _part(start_s: float, end_s: float | None) -> str:
    return f"{_clock(start_s)} to {'the end' if end_s is None else _clock(end_s)}"


def _clock(seconds: float) -> str:
    """Return a time as 0:07.50, 12:00.00 or 1:02:03.00; at most LONGEST_CLOCK_S, since a client may send any number."""
    minutes, hundredths = divmod(round(min(seconds, LONGEST_CLOCK_S) * 100), 6000)
    hours = f"{minutes // 60}:{minutes % 60:02d}" if minutes >= 60 else f"{minutes}"
    return f"{hours}:{hundredths / 100:05.2f}"


def present_job(state: JobState, queue_position: int | None = None) -> Job:
    """Return the job as the API and webhooks show it."""
    values = {name: getattr(state, name) for name in JobState.model_fields}
    keyframes = [keyframe_image(state.id, keyframe) for keyframe in state.keyframes]
    title = title_of(state.options, state.source)
    more = {"keyframes": keyframes, "title": title, "queue_position": queue_position, "links": links(state.id)}
    return Job(**{**values, **more})


def present_summary(record: Record, status: JobStatus) -> JobSummary:
    """Return the job as a list shows it."""
    names = ("id", "kind", "source", "parent", "metadata", "created_at")
    values = {name: getattr(record, name) for name in names}
    title = title_of(record.options, record.source)
    return JobSummary(**values, status=status, title=title, links=links(record.id))


def present_event_data(job_id: str, event_type: str, data: str) -> str:
    """Return the JSON text that clients receive for a stored event's `data`.

    The result depends on the arguments alone, so a resumed stream repeats an event byte for byte. Events stored by
    older versions already contain `image`; it is replaced.
    """
    if event_type != KEYFRAMES_TYPE:
        return data
    event = json.loads(data)
    keyframes = [Keyframe.model_validate(keyframe) for keyframe in event["keyframes"]]
    event["keyframes"] = [keyframe_image(job_id, keyframe).model_dump() for keyframe in keyframes]
    return json.dumps(event, ensure_ascii=False, separators=(",", ":"))
