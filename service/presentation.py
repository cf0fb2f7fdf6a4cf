"""How the API presents stored jobs and events: the stored facts plus the paths of related resources.

Stored data holds no URLs. Routes, event streams and webhooks add them here, so a stored job or event can be served
under other paths without being rewritten.
"""

import json
from datetime import datetime

from pydantic import BaseModel, Field

from service.contract.events import Keyframes
from service.contract.jobs import JobKind, JobState, JobStatus, Keyframe, Metadata, Record, Source

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
    """A job with all its results so far."""

    keyframes: list[KeyframeImage] = Field(default_factory=list)  # type: ignore[assignment]  # in the API's order
    links: Links


class JobSummary(BaseModel):
    """A job as it appears in a list: without its results."""

    id: str
    kind: JobKind
    status: JobStatus
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


def present_job(state: JobState) -> Job:
    """Return the job as the API and webhooks show it."""
    values = {name: getattr(state, name) for name in JobState.model_fields}
    keyframes = [keyframe_image(state.id, keyframe) for keyframe in state.keyframes]
    return Job(**{**values, "keyframes": keyframes, "links": links(state.id)})


def present_summary(record: Record, status: JobStatus) -> JobSummary:
    """Return the job as a list shows it."""
    names = ("id", "kind", "source", "parent", "metadata", "created_at")
    return JobSummary(**{name: getattr(record, name) for name in names}, status=status, links=links(record.id))


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
