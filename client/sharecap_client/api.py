"""The asynchronous client: submits videos, follows jobs and reads their results.

This module contains what the service's requests mean. How they are sent and repeated is in `transport.py`, and how an
event stream resumes in `streams.py`. `blocking.py` offers the same methods without `await`.
"""

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError
from typing_extensions import Unpack

from sharecap_client.errors import ApiError, JobCancelled, UnexpectedAnswer, error_class
from sharecap_client.events import Event
from sharecap_client.models import ClipPage, Job, JobPage, JobStatus, JobSummary
from sharecap_client.options import JobOptions, VideoOptions
from sharecap_client.streams import follow
from sharecap_client.transport import Transport
from sharecap_client.uploads import opened

DEFAULT_URL = "http://127.0.0.1:8000"
RETRIES = 4
PAGE_SIZE = 100
NO_WAIT = {"Prefer": "wait=0"}

ModelT = TypeVar("ModelT", bound=BaseModel)
Video = str | os.PathLike[str] | BinaryIO
"""A path, an http(s) URL, or a file that is open for reading bytes."""


class AsyncClient:
    """Talks to the service at `url`. Close it with `async with` or `aclose`.

    `retries`: how often a request is repeated if the service is temporarily unreachable or refuses it with a retryable
    error. All methods raise `SharecapError`. Tests pass their own `transport`.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        api_key: str | None = None,
        *,
        retries: int = RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._transport = Transport(url, api_key, retries, transport)
        self.url = self._transport.url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.http.aclose()

    async def caption(
        self,
        video: Video,
        *,
        filename: str | None = None,
        idempotency_key: str | None = None,
        wait_s: int = 0,
        **options: Unpack[VideoOptions],
    ) -> "AsyncSubmittedJob":
        """Upload a video, or let the service fetch a URL, and return the new job.

        `filename` is the name that the job shows; the default is that of the file. With `idempotency_key`, a repeated
        call returns the same job. With `wait_s`, at most 60, the service answers when the job has ended or this time is
        over. Raises OSError if the file cannot be read.
        """
        headers = {"Prefer": f"wait={wait_s}"} if wait_s else {}
        if isinstance(video, str) and video.startswith(("http://", "https://")):
            return await self._submit("/captions", idempotency_key, json={"url": video, **options}, headers=headers)
        path = video if isinstance(video, str | os.PathLike) else str(getattr(video, "name", "video"))
        async with opened(video) as file:
            return await self._upload(file, filename or Path(path).name, idempotency_key, options, headers)

    async def recaption(
        self, prompt: str, *, idempotency_key: str | None = None, **options: Unpack[JobOptions]
    ) -> "AsyncSubmittedJob":
        """Expand a short prompt into a dense caption. Returns the new job."""
        body = {"prompt": prompt, **options}
        return await self._submit("/recaption", idempotency_key, json=body, headers=NO_WAIT)

    async def clip(
        self,
        job_id: str,
        start_s: float,
        end_s: float,
        *,
        idempotency_key: str | None = None,
        **options: Unpack[JobOptions],
    ) -> "AsyncSubmittedJob":
        """Caption a part of a video from the differential captions of its job. Returns the new job."""
        body = {"start_s": start_s, "end_s": end_s, **options}
        return await self._submit(f"/captions/{job_id}/clips", idempotency_key, json=body, headers=NO_WAIT)

    async def job(self, job_id: str) -> Job:
        """Return the job with its results so far."""
        return self._parse(Job, await self._transport.get(f"/captions/{job_id}"))

    async def jobs(
        self, *, status: JobStatus | str | None = None, kind: str | None = None
    ) -> AsyncGenerator[JobSummary]:
        """Yield the jobs of this API key, newest first, without their results."""
        cursor: str | None = None
        while True:
            answer = await self._transport.get("/captions", limit=PAGE_SIZE, status=status, kind=kind, cursor=cursor)
            page = self._parse(JobPage, answer)
            for job in page.jobs:
                yield job
            if (cursor := page.cursor) is None:
                return

    async def clips(self, job_id: str) -> AsyncGenerator[Job]:
        """Yield the clips of a video job with their results, newest first."""
        cursor: str | None = None
        while True:
            answer = await self._transport.get(f"/captions/{job_id}/clips", limit=PAGE_SIZE, cursor=cursor)
            page = self._parse(ClipPage, answer)
            for clip in page.clips:
                yield clip
            if (cursor := page.cursor) is None:
                return

    def events(self, job_id: str, after: int = 0) -> AsyncGenerator[Event]:
        """Yield the job's events after the one with the id `after`, to the last. Resumes if the connection breaks."""
        return follow(self._transport, job_id, after)

    async def wait(self, job_id: str, *, check: bool = True, timeout_s: float | None = None) -> Job:
        """Wait until the job has ended and return it.

        Raises the error of a failed job and JobCancelled unless `check` is false; TimeoutError after `timeout_s`.
        """
        async with asyncio.timeout(timeout_s), aclosing(self.events(job_id)) as events:
            async for _ in events:
                pass
        job = await self.job(job_id)
        if check:
            _check(job)
        return job

    async def keyframe(self, job_id: str, index: int) -> bytes:
        """Return the JPEG image of a keyframe."""
        return (await self._transport.request("GET", f"/captions/{job_id}/keyframes/{index}.jpg")).content

    async def cancel(self, job_id: str) -> Job:
        """Cancel the job and return it. A job that has ended does not change; a running one stops within seconds."""
        return self._parse(Job, await self._transport.post(f"/captions/{job_id}/cancel"))

    async def delete(self, job_id: str) -> None:
        """Cancel the job if it has not ended, and delete it with all its results."""
        await self._transport.request("DELETE", f"/captions/{job_id}")

    async def _upload(
        self, video: BinaryIO, name: str, key: str | None, options: Mapping[str, Any], headers: dict[str, str]
    ) -> "AsyncSubmittedJob":
        files = {"file": (name, video, "application/octet-stream")}
        fields = {option: _form_text(value) for option, value in options.items()}
        return await self._submit("/captions", key, files=files, data=fields, headers=headers)

    async def _submit(self, path: str, key: str | None, **arguments: Any) -> "AsyncSubmittedJob":
        """Create a job. If it has failed already, this returns it as well; `wait` raises its error."""
        try:
            job = self._parse(Job, await self._transport.post(path, key, **arguments))
        except ApiError as error:
            if error.job_id is None:
                raise
            job = await self.job(error.job_id)
        return AsyncSubmittedJob(self, job)

    def _parse(self, model: type[ModelT], answer: dict[str, Any]) -> ModelT:
        try:
            return model.model_validate(answer)
        except ValidationError as error:
            raise UnexpectedAnswer(f"{self.url} is not a sharecap service: {error.errors()[0]['msg']}") from error


class AsyncSubmittedJob:
    """A job that this client has submitted. `submitted` is the job as it was then."""

    def __init__(self, client: AsyncClient, submitted: Job) -> None:
        self.id, self.client, self.submitted = submitted.id, client, submitted

    def __aiter__(self) -> AsyncGenerator[Event]:
        return self.events()

    def events(self, after: int = 0) -> AsyncGenerator[Event]:
        """See `AsyncClient.events`."""
        return self.client.events(self.id, after)

    async def wait(self, *, check: bool = True, timeout_s: float | None = None) -> Job:
        """See `AsyncClient.wait`."""
        return await self.client.wait(self.id, check=check, timeout_s=timeout_s)

    async def cancel(self) -> Job:
        """See `AsyncClient.cancel`."""
        return await self.client.cancel(self.id)

    async def delete(self) -> None:
        """See `AsyncClient.delete`."""
        await self.client.delete(self.id)


def _form_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _check(job: Job) -> None:
    """Raise the error of a job that did not complete."""
    if job.error is not None:
        error = job.error
        raise error_class(error.code)(error.detail, code=error.code, retryable=error.retryable, job_id=job.id)
    if job.status is JobStatus.CANCELLED:
        raise JobCancelled(f"{job.id} was cancelled", job_id=job.id)
