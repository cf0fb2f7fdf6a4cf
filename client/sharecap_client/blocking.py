"""The client without `await`: the methods of `AsyncClient`, run on an event loop in a thread of its own.

No request is described here, only how a call gets to that thread and back. See docs/decisions for the reasons.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

from typing_extensions import Unpack

from sharecap_client.api import DEFAULT_URL, RETRIES, AsyncClient, AsyncSubmittedJob, Video
from sharecap_client.events import Event
from sharecap_client.models import Job, JobStatus, JobSummary
from sharecap_client.options import JobOptions, VideoOptions

T = TypeVar("T")
END = object()


class EventLoopThread:
    """An event loop in a daemon thread, so that a client that was never closed does not keep the program running."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sharecap client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return the result of `work`. An exception in this thread, such as Ctrl-C, cancels `work`."""
        if self._loop.is_closed():
            work.close()
            raise RuntimeError("the client is closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncGenerator[T]) -> Iterator[T]:
        """Yield the items of an asynchronous generator."""
        try:
            while (item := self.run(_next(items))) is not END:
                yield item
        finally:
            with suppress(RuntimeError):  # the generator is still running: its cancellation closes it
                self.run(_close(items))

    def stop(self) -> None:
        """End the thread. A second call has no effect."""
        if self._loop.is_closed():
            return
        self.run(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _next(items: AsyncGenerator[T]) -> T | Any:
    return await anext(items, END)


async def _close(items: AsyncGenerator[Any]) -> None:
    await items.aclose()


class Client:
    """Talks to the service at `url`. Close it with `with` or `close`. The methods are those of `AsyncClient`."""

    def __init__(self, url: str = DEFAULT_URL, api_key: str | None = None, *, retries: int = RETRIES) -> None:
        self._client = AsyncClient(url, api_key, retries=retries)
        self._thread = EventLoopThread()
        self.url = self._client.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        with suppress(RuntimeError):  # closed before
            self._thread.run(self._client.aclose())
        self._thread.stop()

    def caption(
        self,
        video: Video,
        *,
        filename: str | None = None,
        idempotency_key: str | None = None,
        wait_s: int = 0,
        **options: Unpack[VideoOptions],
    ) -> "SubmittedJob":
        """See `AsyncClient.caption`."""
        work = self._client.caption(video, filename=filename, idempotency_key=idempotency_key, wait_s=wait_s, **options)
        return self._submitted(work)

    def recaption(
        self, prompt: str, *, idempotency_key: str | None = None, **options: Unpack[JobOptions]
    ) -> "SubmittedJob":
        """See `AsyncClient.recaption`."""
        return self._submitted(self._client.recaption(prompt, idempotency_key=idempotency_key, **options))

    def clip(
        self,
        job_id: str,
        start_s: float,
        end_s: float,
        *,
        idempotency_key: str | None = None,
        **options: Unpack[JobOptions],
    ) -> "SubmittedJob":
        """See `AsyncClient.clip`."""
        return self._submitted(self._client.clip(job_id, start_s, end_s, idempotency_key=idempotency_key, **options))

    def job(self, job_id: str) -> Job:
        """See `AsyncClient.job`."""
        return self._thread.run(self._client.job(job_id))

    def jobs(self, *, status: JobStatus | str | None = None, kind: str | None = None) -> Iterator[JobSummary]:
        """See `AsyncClient.jobs`."""
        return self._thread.iterate(self._client.jobs(status=status, kind=kind))

    def clips(self, job_id: str) -> Iterator[Job]:
        """See `AsyncClient.clips`."""
        return self._thread.iterate(self._client.clips(job_id))

    def events(self, job_id: str, after: int = 0) -> Iterator[Event]:
        """See `AsyncClient.events`."""
        return self._thread.iterate(self._client.events(job_id, after))

    def wait(self, job_id: str, *, check: bool = True, timeout_s: float | None = None) -> Job:
        """See `AsyncClient.wait`."""
        return self._thread.run(self._client.wait(job_id, check=check, timeout_s=timeout_s))

    def keyframe(self, job_id: str, index: int) -> bytes:
        """See `AsyncClient.keyframe`."""
        return self._thread.run(self._client.keyframe(job_id, index))

    def cancel(self, job_id: str) -> Job:
        """See `AsyncClient.cancel`."""
        return self._thread.run(self._client.cancel(job_id))

    def delete(self, job_id: str) -> None:
        """See `AsyncClient.delete`."""
        self._thread.run(self._client.delete(job_id))

    def _submitted(self, work: Coroutine[Any, Any, AsyncSubmittedJob]) -> "SubmittedJob":
        return SubmittedJob(self, self._thread.run(work).submitted)


class SubmittedJob:
    """A job that this client has submitted. `submitted` is the job as it was then."""

    def __init__(self, client: Client, submitted: Job) -> None:
        self.id, self.client, self.submitted = submitted.id, client, submitted

    def __iter__(self) -> Iterator[Event]:
        return self.events()

    def events(self, after: int = 0) -> Iterator[Event]:
        """See `AsyncClient.events`."""
        return self.client.events(self.id, after)

    def wait(self, *, check: bool = True, timeout_s: float | None = None) -> Job:
        """See `AsyncClient.wait`."""
        return self.client.wait(self.id, check=check, timeout_s=timeout_s)

    def cancel(self) -> Job:
        """See `AsyncClient.cancel`."""
        return self.client.cancel(self.id)

    def delete(self) -> None:
        """See `AsyncClient.delete`."""
        self.client.delete(self.id)
