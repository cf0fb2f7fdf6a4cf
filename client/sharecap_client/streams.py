"""Follows the event stream of a job, over as many connections as it takes.

A stream that breaks is opened again after the last event received (`Last-Event-ID`), so every event is delivered once
and in order.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import httpx
from httpx_sse import EventSource, ServerSentEvent, SSEError

from sharecap_client.errors import SharecapError, UnexpectedAnswer
from sharecap_client.events import Event, parse
from sharecap_client.transport import CONNECT_TIMEOUT_S, Transport, error_of

HEARTBEAT_S = 15.0
"""The service writes to a silent event stream this often. A test compares this with the service's default."""
STREAM_TIMEOUT_S = 3 * HEARTBEAT_S
"""A stream that is silent for this long is treated as broken."""
RECONNECT_AFTER_S = 2.0
MAX_RECONNECTS = 30
"""Failed connections in a row after which following a job gives up."""


async def follow(transport: Transport, job_id: str, after: int = 0) -> AsyncGenerator[Event]:
    """Yield the job's events after `after` up to the last, reconnecting as often as necessary.

    Event types that this version does not know are skipped, because the service may be newer. Raises SharecapError if
    the service refuses or stays unreachable.
    """
    last_event_id, failures = str(after or ""), 0
    while True:
        try:
            async with aclosing(_connect(transport, job_id, last_event_id)) as stream:
                async for sse in stream:
                    last_event_id, failures = sse.id or last_event_id, 0
                    if (event := parse(sse.event, sse.data, sse.id)) is None:
                        continue
                    yield event
                    if event.final:
                        return
            return
        except SharecapError as error:
            failures += 1
            if not (error.retryable and transport.reached) or failures > MAX_RECONNECTS:
                raise
            await asyncio.sleep(max(RECONNECT_AFTER_S, error.retry_after_s or 0))


async def _connect(transport: Transport, job_id: str, last_event_id: str) -> AsyncGenerator[ServerSentEvent]:
    """Yield the server-sent events of one connection.

    Raises ServiceUnreachable if it ends early. Yields nothing if the client has already received the last event.
    """
    headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last_event_id} if last_event_id else {})}
    timeout = httpx.Timeout(CONNECT_TIMEOUT_S, read=STREAM_TIMEOUT_S)
    try:
        async with transport.http.stream(
            "GET", f"/captions/{job_id}/events", headers=headers, timeout=timeout
        ) as response:
            transport.reached = True
            if response.status_code == httpx.codes.NO_CONTENT:
                return
            if response.is_error:
                await response.aread()
                raise error_of(response)
            async for sse in EventSource(response).aiter_sse():
                yield sse
    except SSEError as error:
        raise UnexpectedAnswer(f"{transport.url} is not a sharecap service: {error}") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise transport.unreachable(error) from error
    raise transport.unreachable("the stream ended before the job did")
