"""Captions clips in this process and returns their rows: `slots` clips at a time, each through the whole pipeline.

A clip that fails becomes a row with its reason. If the engine dies, this process ends, and Ray starts another one that
captions the same clips again. A clip that was interrupted twice is captioned alone, so that a third death is its own;
then it is given up.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, NoReturn, cast

from fsspec.core import url_to_fs
from sharecap_client.datasets.batch.captioner import UNREADABLE
from sharecap_client.datasets.batch.inputs import is_url, is_web
from sharecap_client.datasets.errors import os_errors
from sharecap_client.datasets.rows import Row, row_of
from sharecap_client.models import ErrorInfo, Job, JobStatus

from service.contract.errors import AttemptsExhausted, DecoderDied, EngineFailed, SharecapError
from service.contract.events import Failed, fold
from service.contract.jobs import JobState, Source, VideoOptions
from service.contract.storage.interface import WRITE_BYTES
from workers.attempt import Attempt, WorkerContext
from workers.commands.ray_data.deaths import DeathCounter
from workers.publisher import MemorySink
from workers.standalone import new_record, run_job

DEATHS_BEFORE_ALONE = 2
MAX_DEATHS = 3
MAX_DECODER_DEATHS = 3
GIVEN_UP = f"{MAX_DEATHS} processes in a row died while they captioned this video, the last time no other one."

log = logging.getLogger("sharecap.worker")


@dataclass(frozen=True)
class Clip:
    """A video to caption. `attempt` counts from 1 how often that was tried."""

    id: str
    video: str
    attempt: int


class Slots:
    """Limits how many clips are captioned at once. A clip can also take all slots."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._free = asyncio.Semaphore(number)
        self._all = asyncio.Lock()

    @asynccontextmanager
    async def take(self, *, alone: bool) -> AsyncIterator[None]:
        """Hold a slot, or with `alone` all of them."""
        number = self._number if alone else 1
        async with AsyncExitStack() as held:
            if alone:
                await held.enter_async_context(self._all)
            for _ in range(number):
                await held.enter_async_context(self._free)
            yield


class ClipCaptioner:
    """Captions clips with the models of `context`.

    `stored_options` is the column `options` of the rows. `end_process` is called if the engine has died; it does not
    return.
    """

    def __init__(
        self,
        context: WorkerContext,
        options: VideoOptions,
        stored_options: str,
        *,
        slots: int,
        deaths: DeathCounter,
        end_process: Callable[[], NoReturn],
    ) -> None:
        self._context, self._options, self._stored_options = context, options, stored_options
        self._slots, self._deaths, self._end_process = Slots(slots), deaths, end_process

    async def rows(self, clips: Sequence[Clip]) -> Sequence[Row]:
        """Caption these clips at the same time, as far as there are slots."""
        return await asyncio.gather(*map(self.row, clips))

    async def row(self, clip: Clip) -> Row:
        """Return the row of a clip, completed or failed."""
        deaths = await self._deaths.count(clip.id)
        if deaths >= MAX_DEATHS:
            return self._failed(clip, ErrorInfo(code=AttemptsExhausted.code, detail=GIVEN_UP, retryable=True))
        try:
            async with AsyncExitStack() as slot:
                job = await self._job(clip, slot, alone=deaths >= DEATHS_BEFORE_ALONE)
                await self._deaths.end(clip.id)  # while no other clip can take the slot
        except OSError as error:
            detail = f"{clip.video}: {error.strerror or error}"
            return self._failed(clip, ErrorInfo(code=UNREADABLE, detail=detail, retryable=True))
        except Exception as error:  # a clip must not end the run
            return self._failed(
                clip, ErrorInfo.model_validate(Failed.of(_as_job_error(clip, error)).error.model_dump())
            )
        return row_of(client_job(job), clip.id, clip.video, self._stored_options, clip.attempt)

    async def _job(self, clip: Clip, slot: AsyncExitStack, *, alone: bool) -> JobState:
        """Return the job of a clip when it has ended. Raises OSError if the video cannot be read."""
        slot_taken = False

        async def enter_slot() -> None:
            nonlocal slot_taken
            if not slot_taken:
                slot_taken = True
                await slot.enter_async_context(self._slots.take(alone=alone))
                await self._deaths.begin(clip.id)

        sink, record = MemorySink(), new_record(_source(clip.video), self._options)
        try:
            await self._store(record.id, clip.video)
            for number in range(1, MAX_DECODER_DEATHS + 1):
                attempt = Attempt.resume(self._context, record, sink.stored, sink, epoch=number)
                attempt.enter_slot = enter_slot
                try:
                    return await run_job(attempt, sink)
                except DecoderDied as error:
                    reason: Exception = error
                except Exception as error:
                    reason = error
                    break
            if not self._context.captioner.alive:
                self._end_process()
            sink.submit(Failed.of(_as_job_error(clip, reason)))
            return fold(record, sink.stored)
        finally:
            await self._context.storage.delete_job_files(record.id)

    async def _store(self, job_id: str, video: str) -> None:
        """Copy the video into the storage of this process, unless the pipeline downloads it.

        Raises OSError if it cannot be read, VideoTooLarge and StorageFull.
        """
        if is_web(video):
            return
        limit = self._context.settings.max_upload_bytes
        async with self._context.storage.receive(limit, job_id) as incoming:
            with await asyncio.to_thread(_open, video) as file:
                while data := await asyncio.to_thread(_read, file):
                    await incoming.write(data)
            await incoming.sync()
            await incoming.commit(job_id)

    def _failed(self, clip: Clip, error: ErrorInfo) -> Row:
        return Row(
            id=clip.id,
            video=clip.video,
            state=JobStatus.FAILED,
            error=error,
            options=self._stored_options,
            attempt=clip.attempt,
            finished_at=datetime.now(UTC),
        )


def client_job(job: JobState) -> Job:
    """Return the job as the service would, without its links, so that `row_of` makes the same row of it."""
    fields = job.model_dump(mode="json")
    keyframes = [{**keyframe, "image": ""} for keyframe in fields.pop("keyframes")]
    return Job.model_validate({**fields, "keyframes": keyframes, "links": {"self": "", "events": ""}})


def _open(video: str) -> BinaryIO:
    """Open a local file, or a URL of any file system that fsspec supports. Raises OSError."""
    if not is_url(video):
        return Path(video).open("rb")
    with os_errors():
        files, path = url_to_fs(video)
        return cast(BinaryIO, files.open(path, "rb"))


def _read(file: BinaryIO) -> bytes:
    with os_errors():
        return file.read(WRITE_BYTES)


def _source(video: str) -> Source:
    return Source(url=video) if is_web(video) else Source(filename=video.rpartition("/")[2])


def _as_job_error(clip: Clip, reason: Exception) -> SharecapError:
    if isinstance(reason, SharecapError):
        return reason
    log.error("%s: unexpected error", clip.id, exc_info=reason)
    return EngineFailed("The worker met an unexpected error.")
