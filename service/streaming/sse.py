"""Events as server-sent events. The same event gives the same bytes every time it is sent."""

import json
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import Request
from starlette.responses import StreamingResponse
from starlette.types import Send

from service.contract.errors import MalformedEventId
from service.contract.store.store import Entry
from service.streaming.follower import Follower

MEDIA_TYPE = "text/event-stream"
RETRY = b"retry: 2000\n\n"
HEARTBEAT = b":\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_PLACE = re.compile(r"[0-9]{1,18}")


def place_asked_for(request: Request) -> int | None:
    """Return the place of the last event that the client has; None where it has none.

    A browser's `Last-Event-ID` goes before `?after=`, for it is the newer of the two. Raises MalformedEventId.
    """
    told = request.headers.get("last-event-id") or request.query_params.get("after")
    if told is None:
        return None
    if not _PLACE.fullmatch(told):
        raise MalformedEventId("Last-Event-ID and `after` take the id of an event of this job: a whole number.")
    return int(told)


def frame(entry: Entry) -> bytes:
    """Return one event as it goes out. `data` is JSON on one line, as it was stored."""
    return f"id: {entry.seq}\nevent: {entry.type}\ndata: {entry.data}\n\n".encode()


def gap(first: int, last: int) -> bytes:
    """Return the event that says: places `first` to `last` are no longer kept."""
    return f"event: gap\ndata: {json.dumps({'first': first, 'last': last})}\n\n".encode()


async def stream(follower: Follower, job_id: str, after: int, heartbeat_s: float) -> AsyncGenerator[bytes]:
    """Yield the job's events after place `after`, and a comment after each `heartbeat_s` of silence."""
    yield RETRY
    async with aclosing(follower.follow(job_id, after, heartbeat_s)) as entries:
        async for entry in entries:
            if entry is None:
                yield HEARTBEAT
                continue
            if entry.seq > after + 1:
                yield gap(after + 1, entry.seq - 1)
            yield frame(entry)
            after = entry.seq


class EventResponse(StreamingResponse):
    """An event stream that lets go of its job as soon as the client is gone."""

    def __init__(
        self, follower: Follower, job_id: str, after: int, heartbeat_s: float, headers: dict[str, str] | None = None
    ) -> None:
        self._frames = stream(follower, job_id, after, heartbeat_s)
        super().__init__(self._frames, headers={**HEADERS, **(headers or {})}, media_type=MEDIA_TYPE)

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._frames):
            await super().stream_response(send)
