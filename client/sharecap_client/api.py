"""A client of a running service: submit a video, follow its events, read the result.

`sharecap caption` uses this module. A request that fails raises `RequestFailed` with the service's error detail.
Following a job reconnects when the connection breaks and resumes after the last event received.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import httpx
from httpx_sse import EventSource, ServerSentEvent, SSEError

from sharecap_client.events import Event, parse
from sharecap_client.models import Job

CONNECT_TIMEOUT_S = 10.0
HEARTBEAT_S = 15.0
"""The service writes to a silent event stream this often. A test compares this with the service's default."""
STREAM_TIMEOUT_S = 3 * HEARTBEAT_S
"""A stream that is silent for this long is treated as broken."""
RECONNECT_AFTER_S = 2.0
MAX_RECONNECTS = 30
"""Failed connections in a row after which following a job gives up."""


class RequestFailed(Exception):
    """The service refused the request or cannot be reached. `status` is None if there was no response."""

    def __init__(self, detail: str, status: int | None = None, code: str | None = None) -> None:
        super().__init__(detail)
        self.status, self.code = status, code


class AsyncClient:
    """Talks to one service at `url`. Close it with `async with`. Tests pass their own `transport`."""

    def __init__(self, url: str, api_key: str | None = None, transport: httpx.AsyncBaseTransport | None = None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)
        self.url = url.rstrip("/")
        self.http = httpx.AsyncClient(base_url=self.url, headers=headers, timeout=timeout, transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        await self.http.aclose()

    async def submit_file(self, video: BinaryIO, name: str, options: Mapping[str, object]) -> str:
        """Upload a video, reading the file while it is sent. Returns the new job's id."""
        files = {"file": (Path(name).name, video, "application/octet-stream")}
        fields = {key: str(value) for key, value in options.items()}
        try:
            return _job_id(await self._request("POST", "/captions", files=files, data=fields))
        except RequestFailed as error:
            if error.status is None:
                # The service may have refused the upload and closed the connection before httpx read why, for example
                # because the key is not valid. Then it refuses this request too, which has no body.
                await self._request("GET", "/captions", params={"limit": 1})
            raise

    async def submit_url(self, video_url: str, options: Mapping[str, object]) -> str:
        """Ask the service to download and caption a video. Returns the new job's id."""
        return _job_id(await self._request("POST", "/captions", json={"url": video_url, **options}))

    async def submit_recaption(self, prompt: str) -> str:
        """Ask for the dense caption of a short prompt. Returns the new job's id without waiting for the caption."""
        headers = {"Prefer": "wait=0"}
        return _job_id(await self._request("POST", "/recaption", json={"prompt": prompt}, headers=headers))

    async def job(self, job_id: str) -> Job:
        """Return the job with its results so far."""
        return Job.model_validate(await self._request("GET", f"/captions/{job_id}"))

    async def follow(self, job_id: str) -> AsyncIterator[Event]:
        """Yield the job's events from the first to the last, reconnecting as often as necessary.

        Event types that this client does not know are skipped, because the service may be newer. Raises RequestFailed
        if the service refuses or stays unreachable.
        """
        last_event_id, failures = "", 0
        while True:
            try:
                async for sse in self._stream(job_id, last_event_id):
                    last_event_id, failures = sse.id or last_event_id, 0
                    if (event := parse(sse.event, sse.data)) is None:
                        continue
                    yield event
                    if event.final:
                        return
            except httpx.TransportError as error:
                failures += 1
                if failures > MAX_RECONNECTS:
                    raise RequestFailed(f"lost the connection to {self.url}: {_message(error)}") from error
                await asyncio.sleep(RECONNECT_AFTER_S)

    async def _stream(self, job_id: str, last_event_id: str) -> AsyncIterator[ServerSentEvent]:
        """Yield the server-sent events of one connection. Raises httpx.TransportError if it ends before the job."""
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last_event_id} if last_event_id else {})}
        timeout = httpx.Timeout(CONNECT_TIMEOUT_S, read=STREAM_TIMEOUT_S)
        path = f"/captions/{job_id}/events"
        async with self.http.stream("GET", path, headers=headers, timeout=timeout) as response:
            if response.status_code == httpx.codes.NO_CONTENT:
                raise RequestFailed(f"{job_id} has ended, but the service did not send its final event")
            if response.is_error:
                await response.aread()
                raise _error_of(response)
            try:
                async for sse in EventSource(response).aiter_sse():
                    yield sse
            except SSEError as error:
                raise RequestFailed(f"{self.url} is not a sharecap service: {error}") from error
        raise httpx.ReadError("the stream ended before the job did")

    async def _request(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        try:
            response = await self.http.request(method, path, **arguments)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RequestFailed(f"cannot reach {self.url}: {_message(error)}") from error
        if not response.is_success:
            raise _error_of(response)
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise RequestFailed(
                f"{self.url} is not a sharecap service: it did not answer with a JSON object", response.status_code
            )
        return answer


def _job_id(answer: dict[str, Any]) -> str:
    if not isinstance(answer.get("id"), str):
        raise RequestFailed("the response contains no job id: is this a sharecap service?")
    return str(answer["id"])


def _message(error: Exception) -> str:
    return str(error) or type(error).__name__


def _error_of(response: httpx.Response) -> RequestFailed:
    """Return the error for an unsuccessful response: its problem+json detail if it has one, else its status line."""
    try:
        problem = response.json()
        detail, code = str(problem["detail"]), problem.get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        return RequestFailed(
            f"{response.status_code} {response.reason_phrase} from {response.url}", response.status_code
        )
    return RequestFailed(detail + (f" ({code})" if code else ""), response.status_code, code)
