"""Captions one video, however long that takes: repeats what a restart or a full queue interrupted, and returns a row.

The `Idempotency-Key` is derived from the run, the row and the options. A video that is sent again, by this process or
by the next one, therefore finds the job that the service has already accepted.
"""

import asyncio
import hashlib
import json
import random
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, BinaryIO, Protocol, cast

import fsspec

from sharecap_client.api import AsyncClient, AsyncSubmittedJob
from sharecap_client.datasets.batch.inputs import is_url, is_web
from sharecap_client.datasets.batch.pace import Pace
from sharecap_client.datasets.batch.selection import Task
from sharecap_client.datasets.errors import os_errors
from sharecap_client.datasets.manifest import Manifest
from sharecap_client.datasets.rows import Row, row_of
from sharecap_client.errors import (
    ApiError,
    IdempotencyConflict,
    NotFound,
    NoWorker,
    QueueUnavailable,
    RateLimited,
    ServiceUnreachable,
    SharecapError,
    StorageFull,
    Unauthorized,
    UnexpectedAnswer,
)
from sharecap_client.models import ErrorInfo, Job, JobStatus

WAIT_S = 50
"""How long the service may delay its answer to an upload until the job has ended. It accepts at most 60."""
FIRST_DELAY_S, MAX_DELAY_S = 0.5, 15.0
FULL_DELAY_S = 5.0
NO_WORKER_S = 15.0
"""If the service has no worker, videos are queued for this long without asking for an answer at the end of the job."""
MAX_TRIES = 5
"""Tries for errors that concern one video only. A service that is away or full is waited for without a limit."""
FULL = (RateLimited, StorageFull, QueueUnavailable)
UNREADABLE = "unreadable_file"
"""Error code of rows whose video this machine cannot read."""


class Listener(Protocol):
    """Is informed of what interrupts the run."""

    def note(self, text: str) -> None: ...


class Captioner:
    """Captions videos with the options of `manifest`."""

    def __init__(self, client: AsyncClient, manifest: Manifest, pace: Pace, listener: Listener) -> None:
        self._client, self._manifest, self._pace, self._listener = client, manifest, pace, listener
        self._worker_expected_at = 0.0

    async def row(self, task: Task) -> Row:
        """Return the row of a video, completed or failed. Raises Unauthorized."""
        attempt, tries = task.attempt, 0
        while True:
            await self._pace.ready()
            try:
                job = await self._job(task, attempt)
            except Unauthorized:
                raise
            except IdempotencyConflict as error:  # its job was deleted, or the file has changed since
                attempt, tries = attempt + 1, tries + 1
                if tries > MAX_TRIES:
                    return self._failed(task, attempt, _info(error))
            except SharecapError as error:
                tries += not _is_away(error)
                if tries > MAX_TRIES or not (error.retryable or isinstance(error, NotFound)):
                    return self._failed(task, attempt, _info(error), error.job_id)
                await self._pause(error, tries)
            except OSError as error:
                detail = f"{task.item.video}: {error.strerror or error}"
                return self._failed(task, attempt, ErrorInfo(code=UNREADABLE, detail=detail, retryable=True))
            else:
                self._pace.finished(job)
                return row_of(job, task.item.id, task.item.video, self._manifest.caption_options, attempt)

    async def _job(self, task: Task, attempt: int) -> Job:
        """Send the video and return its job when that has ended."""
        submitted = await self._submit(task, attempt)
        if submitted.submitted.status.ended:
            return submitted.submitted
        tries = 0
        while True:
            try:
                return await submitted.wait(check=False)
            except SharecapError as error:
                if not _is_away(error):
                    raise
                tries += 1
                await self._pause(error, tries)

    async def _submit(self, task: Task, attempt: int) -> AsyncSubmittedJob:
        async with _opened(task.item.video) as video:
            arguments: dict[str, Any] = {
                "filename": task.item.video.rpartition("/")[2] or None,
                "idempotency_key": idempotency_key(self._manifest, task.item.id, attempt),
                **self._manifest.options,
            }
            if time.monotonic() >= self._worker_expected_at:
                try:
                    return await self._client.caption(video, wait_s=WAIT_S, **arguments)
                except NoWorker:  # the job can be queued all the same
                    self._listener.note("no worker is ready; videos wait in the queue")
                    self._worker_expected_at = time.monotonic() + NO_WORKER_S
            return await self._client.caption(video, **arguments)

    async def _pause(self, error: SharecapError, tries: int) -> None:
        if isinstance(error, FULL):
            self._listener.note(f"the service takes no more for the moment: {error.detail}")
            self._pace.refused(error.retry_after_s or FULL_DELAY_S)
            return
        if _is_away(error):
            self._listener.note(f"{error.detail}; trying again")
        delay_s = min(FIRST_DELAY_S * 2**tries, MAX_DELAY_S) * random.uniform(0.75, 1.25)
        await asyncio.sleep(max(delay_s, error.retry_after_s or 0))

    def _failed(self, task: Task, attempt: int, error: ErrorInfo, job_id: str | None = None) -> Row:
        return Row(
            id=task.item.id,
            video=task.item.video,
            state=JobStatus.FAILED,
            error=error,
            options=self._manifest.caption_options,
            job=job_id,
            attempt=attempt,
            finished_at=datetime.now(UTC),
        )


def idempotency_key(manifest: Manifest, row_id: str, attempt: int) -> str:
    """Return the key under which the service finds the job of this row again."""
    parts = [manifest.run, row_id, json.dumps(manifest.options, sort_keys=True), str(attempt)]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def _is_away(error: SharecapError) -> bool:
    """Return whether the error concerns the service as a whole, so that waiting is all that can be done."""
    if isinstance(error, UnexpectedAnswer):
        return error.retryable
    return isinstance(error, (ServiceUnreachable, NoWorker, *FULL))


def _info(error: SharecapError) -> ErrorInfo:
    code = error.code if isinstance(error, ApiError) else "unexpected_answer"
    return ErrorInfo(code=code, detail=error.detail, retryable=error.retryable)


@asynccontextmanager
async def _opened(video: str) -> AsyncIterator[str | BinaryIO]:
    """Yield a path, a URL that the service fetches itself, or an open file: a temporary copy of a remote one."""
    if is_web(video) or not is_url(video):
        yield video
        return
    with tempfile.TemporaryFile() as file:
        await asyncio.to_thread(_download, video, cast(BinaryIO, file))
        yield cast(BinaryIO, file)


def _download(url: str, file: BinaryIO) -> None:
    with os_errors(), fsspec.open(url, "rb") as remote:
        shutil.copyfileobj(remote, file)
    file.seek(0)
