"""Server-sent events: the wire format of a job's events. An event has the same bytes each time it is sent."""

import json
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import Request
from starlette.responses import StreamingResponse
from starlette.types import Send

from service.contract.errors import MalformedEventId
from service.contract.store.entries import Entry
from service.presentation import present_event_data
from service.streaming.follower import Follower

MEDIA_TYPE = "text/event-stream"
RETRY = b"retry: 2000\n\n"
HEARTBEAT = b":\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_EVENT_ID = re.compile(r"[0-9]{1,18}")


def last_event_id(request: Request) -> int | None:
    """Return the id of the last event that the client has received, or None if the request names none.

    `Last-Event-ID` takes precedence over `?after=`: a browser that reconnects sends the old URL and a new header.
    Raises MalformedEventId.
    """
    text = request.headers.get("last-event-id") or request.query_params.get("after")
    if text is None:
        return None
    if not _EVENT_ID.fullmatch(text):
        raise MalformedEventId("Last-Event-ID and `after` must be the id of an event of this job: a whole number.")
    return int(text)


def frame(job_id: str, entry: Entry) -> bytes:
    """Return one event as sent to clients. `data` is one line of JSON."""
    data = present_event_data(job_id, entry.type, entry.data)
    return f"id: {entry.seq}\nevent: {entry.type}\ndata: {data}\n\n".encode()


def gap(first: int, last: int) -> bytes:
    """Return the event that reports that the stored stream lacks events `first` to `last`."""
    return f"event: gap\ndata: {json.dumps({'first': first, 'last': last})}\n\n".encode()


async def stream(follower: Follower, job_id: str, after: int, heartbeat_s: float) -> AsyncGenerator[bytes]:
    """Yield the job's events after `after`, and a comment after each `heartbeat_s` of silence."""
    yield RETRY
    async with aclosing(follower.follow(job_id, after, heartbeat_s)) as entries:
        async for entry in entries:
            if entry is None:
                yield HEARTBEAT
                continue
            if entry.seq > after + 1:
                yield gap(after + 1, entry.seq - 1)
            yield frame(job_id, entry)
            after = entry.seq


class EventResponse(StreamingResponse):
    """An event stream that stops following its job as soon as the client disconnects."""

    def __init__(
        self, follower: Follower, job_id: str, after: int, heartbeat_s: float, headers: dict[str, str] | None = None
    ) -> None:
        self._frames = stream(follower, job_id, after, heartbeat_s)
        super().__init__(self._frames, headers={**HEADERS, **(headers or {})}, media_type=MEDIA_TYPE)

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._frames):
            await super().stream_response(send)
