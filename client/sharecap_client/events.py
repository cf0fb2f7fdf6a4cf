"""Events of a job as the service streams them, in the order in which they can occur.

`parse` returns None for an event type that this version does not know, so that an older client can follow a newer
service.
"""

import json
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, Field, PrivateAttr, TypeAdapter

from sharecap_client.models import ErrorInfo, Keyframe, Timings, Usage


class EventBase(BaseModel):
    """`final` is true for the event types after which the stream ends. `id` is the event's position in the stream."""

    final: ClassVar[bool] = False
    type: str
    _id: int = PrivateAttr(0)

    @property
    def id(self) -> int:
        """The position of the event in its stream, from 1; pass it as `after` to follow the job from there."""
        return self._id


class Queued(EventBase):
    """The job waits for a worker."""

    type: Literal["queued"] = "queued"


class Started(EventBase):
    """An attempt has started, with the model of this name. If `attempt` > 1, discard the deltas of unfinished texts."""

    type: Literal["started"] = "started"
    attempt: int
    model: str | None = None


class Fetching(EventBase):
    """Progress of the download of a URL job's video. `total_bytes` is None if its size is not known."""

    type: Literal["fetching"] = "fetching"
    received_bytes: int
    total_bytes: int | None = None


class Video(EventBase):
    """The video was opened. `interval_s` is the sampling interval in use."""

    type: Literal["video"] = "video"
    duration_s: float
    width: int
    height: int
    fps: float
    interval_s: float
    bytes: int | None = None
    sha256: str | None = None


class Keyframes(EventBase):
    """Newly selected keyframes. `complete`: no more follow."""

    type: Literal["keyframes"] = "keyframes"
    keyframes: list[Keyframe]
    complete: bool


class Delta(EventBase):
    """Generated text, to be appended to the differential caption of `keyframe` or to the caption."""

    type: Literal["delta"] = "delta"
    of: Literal["differential", "caption"]
    keyframe: int | None = None
    text: str


class Differential(EventBase):
    """A finished differential caption."""

    type: Literal["differential"] = "differential"
    keyframe: int
    time_s: float
    text: str
    finish_reason: str | None = None


class Caption(EventBase):
    """The finished caption of the whole video, clip or prompt."""

    type: Literal["caption"] = "caption"
    text: str
    finish_reason: str | None = None
    keyframes_seen: int | None = None


class Completed(EventBase):
    """The job completed."""

    final = True
    type: Literal["completed"] = "completed"
    usage: Usage
    timings_s: Timings


class Failed(EventBase):
    """The job failed."""

    final = True
    type: Literal["failed"] = "failed"
    error: ErrorInfo


class Cancelled(EventBase):
    """The job was cancelled."""

    final = True
    type: Literal["cancelled"] = "cancelled"


Event = Annotated[
    Queued | Started | Fetching | Video | Keyframes | Delta | Differential | Caption | Completed | Failed | Cancelled,
    Field(discriminator="type"),
]
_ADAPTER: TypeAdapter[Event] = TypeAdapter(Event)


def parse(event_type: str, data: str, event_id: str = "") -> Event | None:
    """Return the event with this type and JSON data, or None if this version cannot read it."""
    try:
        event = _ADAPTER.validate_python({"type": event_type, **json.loads(data)})
    except (ValueError, TypeError):  # pydantic's ValidationError is a ValueError
        return None
    event._id = int(event_id) if event_id.isdecimal() else 0
    return event
