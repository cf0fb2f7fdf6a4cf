"""A client of a running service: send a video, follow its events, read the result. `sharecap caption` stands on it.

Every request that fails raises `RequestFailed` with the service's own words. Following survives a broken connection:
it goes on after the last event that arrived.
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
SILENCE_S = 45.0
"""Three heartbeats: a stream that is silent for longer is dead."""
RECONNECT_AFTER_S = 2.0
RECONNECT_TRIES = 30


class RequestFailed(Exception):
    """The service refused, or cannot be reached. `status` is none where there was no answer."""

    def __init__(self, detail: str, status: int | None = None, code: str | None = None) -> None:
        super().__init__(detail)
        self.status, self.code = status, code


class Client:
    """One service. `transport` is for tests."""

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
        """Upload a video, read as it is sent; return the new job's id."""
        files = {"file": (Path(name).name, video, "application/octet-stream")}
        fields = {key: str(value) for key, value in options.items()}
        return _job_id(await self._request("POST", "/captions", files=files, data=fields))

    async def submit_url(self, video_url: str, options: Mapping[str, object]) -> str:
        """Ask the service to fetch and caption a video; return the new job's id."""
        return _job_id(await self._request("POST", "/captions", json={"url": video_url, **options}))

    async def submit_recaption(self, prompt: str) -> str:
        """Ask for the dense caption of a short prompt; return the new job's id without waiting for the end."""
        headers = {"Prefer": "wait=0"}
        return _job_id(await self._request("POST", "/recaption", json={"prompt": prompt}, headers=headers))

    async def job(self, job_id: str) -> Job:
        """Return the job with all results so far."""
        return Job.model_validate(await self._request("GET", f"/captions/{job_id}"))

    async def follow(self, job_id: str) -> AsyncIterator[Event]:
        """Yield the job's events from the first to the last, over as many connections as it takes.

        Events of a kind that this client does not know are passed over: the service may be newer.
        """
        after, tries = "", 0
        while True:
            try:
                async for sse in self._stream(job_id, after):
                    after, tries = sse.id or after, 0
                    if (event := parse(sse.event, sse.data)) is None:
                        continue
                    yield event
                    if event.final:
                        return
            except httpx.TransportError as error:
                tries += 1
                if tries > RECONNECT_TRIES:
                    raise RequestFailed(f"lost the connection to {self.url}: {_words(error)}") from error
                await asyncio.sleep(RECONNECT_AFTER_S)

    async def _stream(self, job_id: str, after: str) -> AsyncIterator[ServerSentEvent]:
        """Yield what one connection brings; raise TransportError where it ends before the job does."""
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": after} if after else {})}
        timeout = httpx.Timeout(CONNECT_TIMEOUT_S, read=SILENCE_S)
        path = f"/captions/{job_id}/events"
        async with self.http.stream("GET", path, headers=headers, timeout=timeout) as response:
            if response.status_code == httpx.codes.NO_CONTENT:
                raise RequestFailed(f"the service says that {job_id} has ended, without its last event")
            if response.is_error:
                await response.aread()
                raise _refused(response)
            try:
                async for sse in EventSource(response).aiter_sse():
                    yield sse
            except SSEError as error:
                raise RequestFailed(f"{self.url} is no sharecap service: {error}") from error
        raise httpx.ReadError("the stream ended before the job did")

    async def _request(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        try:
            response = await self.http.request(method, path, **arguments)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RequestFailed(f"cannot reach {self.url}: {_words(error)}") from error
        if not response.is_success:
            raise _refused(response)
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise RequestFailed(
                f"{self.url} is no sharecap service: its answer is no JSON object", response.status_code
            )
        return answer


def _job_id(answer: dict[str, Any]) -> str:
    if not isinstance(answer.get("id"), str):
        raise RequestFailed("the answer names no job: is this a sharecap service?")
    return str(answer["id"])


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


def _refused(response: httpx.Response) -> RequestFailed:
    """Return the error that a problem+json answer, or any other, stands for."""
    try:
        problem = response.json()
        detail, code = str(problem["detail"]), problem.get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        return RequestFailed(
            f"{response.status_code} {response.reason_phrase} from {response.url}", response.status_code
        )
    return RequestFailed(detail + (f" ({code})" if code else ""), response.status_code, code)
