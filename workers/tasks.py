"""Whose jobs these are: claims, leases, cancellation, and how each attempt ends.

`run_job` is the only thing that a wake-up can do. It hands a job's id to the worker's loop and returns; there the
attempts run side by side. What an attempt does is said in `pipeline.py`.
"""

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from redis.exceptions import RedisError

from service.contract.errors import DecoderDied, EngineFailed, SharecapError
from service.contract.events import Cancelled, Failed
from service.contract.jobs import JobKind, Record
from service.contract.storage.local import keyframes_dir
from service.contract.store.store import (
    MAX_STRIKES,
    RENEW_EVERY_S,
    CancelRequested,
    Fenced,
    Lease,
    StreamTruncated,
    WorkerCard,
    new_token,
)
from service.contract.store.wakeups import Wakeups
from workers import pipeline
from workers.attempt import Attempt, WorkerContext
from workers.publisher import retry_redis

SHOW_EVERY_S = 5.0
CLAIM_TIMEOUT_S = 60.0
RELEASE_TIMEOUT_S = 4.0

log = logging.getLogger("sharecap.worker")


class Released(Exception):
    """The worker stops: the job goes back for another one to take up."""


class EngineDied(EngineFailed):
    """The engine is gone: maybe for this job's sake, maybe for another's."""


class Room(Enum):
    """Which videos a worker has room for."""

    FOR_ANY = "any"
    FOR_RESUMED = "resumed"
    NONE = "none"


@dataclass
class Running:
    """A claimed job. `progress` is set once a text is finished, `why` says what the work was interrupted for."""

    lease: Lease
    record: Record
    progress: asyncio.Event = field(default_factory=asyncio.Event)
    attempt: "asyncio.Task[None] | None" = None
    work: "asyncio.Task[None] | None" = None
    why: Exception | None = None

    def interrupt(self, why: Exception) -> None:
        if self.why is None:
            self.why = why
            if self.work is not None:
                self.work.cancel()


class Runner:
    """All jobs in work. Lives on the worker's loop, but for `run_job` and `room_for_videos`.

    `on_engine_death` is called once when the engine is gone: nothing can be captioned from then on.
    """

    def __init__(
        self, tools: WorkerContext, wakeups: Wakeups, card: WorkerCard, on_engine_death: Callable[[], None]
    ) -> None:
        self._tools = tools
        self._store = tools.store
        self._wakeups = wakeups
        self._card = card
        self._on_engine_death = on_engine_death
        self._jobs: dict[Lease, Running] = {}
        self._attempts: set[asyncio.Task[None]] = set()
        self._trial = asyncio.Lock()
        self._on_trial: set[str] = set()
        self._loop = asyncio.get_running_loop()
        self._chores = [asyncio.create_task(chore()) for chore in (self._keep_leases, self._show_card)]
        self._stopping = False
        self.engine_died = False

    # -- called from the main thread

    @property
    def room_for_videos(self) -> Room:
        """Which videos may be taken. Those of a worker that is gone may take as many slots again as there are.

        Only the thread that asks takes any.
        """
        videos = sum(job.record.kind is JobKind.VIDEO for job in list(self._jobs.values()))
        if self._stopping or videos >= 2 * self._card.slots:
            return Room.NONE
        return Room.FOR_ANY if videos < self._card.slots else Room.FOR_RESUMED

    def run_job(self, job_id: str) -> None:
        """Claim the job and start on it; return as soon as that is done, or there is nothing to claim."""
        asyncio.run_coroutine_threadsafe(self._start(job_id), self._loop).result(CLAIM_TIMEOUT_S)

    # -- one job

    async def _start(self, job_id: str) -> None:
        if self._stopping or self.engine_died:
            return  # a reaper wakes another worker
        if await retry_redis(lambda: self._store.strikes(job_id)) < MAX_STRIKES - 1:
            await self._claim(job_id)
        elif job_id not in self._on_trial:
            self._on_trial.add(job_id)
            self._keep(self._try_alone(job_id)).add_done_callback(lambda _: self._on_trial.discard(job_id))

    async def _claim(self, job_id: str) -> Running | None:
        token = f"{self._card.id}-{new_token()}"
        lease = await retry_redis(lambda: self._store.claim(job_id, token))
        record = await retry_redis(lambda: self._store.record(job_id)) if lease else None
        if lease is None or record is None:
            return None
        before = [running for running in self._jobs.values() if running.lease.job_id == job_id]
        running = self._jobs[lease] = Running(lease, record)
        running.attempt = self._keep(self._attempt(running, before))
        return running

    async def _try_alone(self, job_id: str) -> None:
        """Give the job its last chance when no other job is on its last: it may be this one that kills workers.

        The trial is over with the first text that it finishes. Until its turn comes the job is not claimed, so that
        it has no share in another one's failure.
        """
        async with self._trial:
            known = await retry_redis(lambda: self._store.kind_and_status(job_id))
            is_video = known is not None and known[0] is JobKind.VIDEO
            if self._stopping or self.engine_died or (is_video and self.room_for_videos is Room.NONE):
                return  # a reaper wakes it again
            running = await self._claim(job_id)
            if running is not None and running.attempt is not None:
                progress = asyncio.create_task(running.progress.wait())
                await asyncio.wait((progress, running.attempt), return_when=asyncio.FIRST_COMPLETED)
                progress.cancel()

    def _keep(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._attempts.add(task)
        task.add_done_callback(self._attempts.discard)
        return task

    async def _attempt(self, running: Running, before: list[Running]) -> None:
        """Work on the job and see to it that it ends in exactly one way.

        `before`: attempts at the same job that have lost their lease, while Redis was away, and do not know it yet.
        """
        try:
            for lost in before:
                lost.interrupt(Fenced(lost.lease.job_id))
            await asyncio.gather(*(lost.attempt for lost in before if lost.attempt), return_exceptions=True)
            attempt = await Attempt.begin(self._tools, running.record, running.lease, running.progress)
            running.work = asyncio.create_task(pipeline.run(attempt))
            if running.why is not None:
                running.work.cancel()
            try:
                await running.work
            except asyncio.CancelledError:
                await self._end(attempt, running.why or Released())
            except Exception as error:
                await self._end(attempt, error)
        except Exception:
            log.exception("%s: could not be worked on", running.lease.job_id)
        finally:
            self._jobs.pop(running.lease, None)

    async def _end(self, attempt: Attempt, why: Exception) -> None:
        """Tell the stream, where there is something to tell, why the work on it has ended."""
        if not self._tools.captioner.alive:
            self._engine_is_dead()
            # a Ctrl-C may have reached the engine too
            why = Released() if self._stopping else EngineDied("The captioning engine stopped.")
        try:
            match why:
                case Released() | StreamTruncated():
                    await self._give_back(attempt)
                case Fenced():
                    await self._forget_if_deleted(attempt)
                case CancelRequested():
                    await self._close(attempt, Cancelled())
                case DecoderDied() | EngineDied():
                    if not await self._give_back(attempt, strike=True):
                        await self._close(attempt, Failed.of(why))
                case SharecapError():
                    await self._close(attempt, Failed.of(why))
                case _:
                    log.error("%s: unexpected", attempt.record.id, exc_info=why)
                    await self._close(attempt, Failed.of(EngineFailed("The worker met an unexpected error.")))
        except Fenced:
            await self._forget_if_deleted(attempt)
        except StreamTruncated:
            await self._give_back(attempt)

    async def _give_back(self, attempt: Attempt, *, strike: bool = False) -> bool:
        """Let another attempt follow; return False where there have been enough."""
        lease = attempt.publisher.lease
        given_back = await retry_redis(lambda: self._store.release(lease, strike=strike))
        if given_back:
            with contextlib.suppress(RedisError):  # a reaper wakes it then
                await self._wakeups.wake(attempt.record.kind, lease.job_id, lease.epoch)
        return given_back

    async def _close(self, attempt: Attempt, event: Cancelled | Failed) -> None:
        """Write the job's last event. Its upload goes first, but only while nobody else may be working with it."""
        with contextlib.suppress(CancelRequested):
            await retry_redis(lambda: self._store.renew(attempt.publisher.lease))
        attempt.remove_upload()
        await attempt.publisher.append(event)

    async def _forget_if_deleted(self, attempt: Attempt) -> None:
        """Remove the files of a job whose record was deleted while it was in work."""
        if await retry_redis(lambda: self._store.record(attempt.record.id)) is None:
            attempt.remove_upload()
            shutil.rmtree(keyframes_dir(self._tools.settings.data_dir, attempt.record.id), ignore_errors=True)

    # -- all jobs

    async def _keep_leases(self) -> None:
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            await asyncio.gather(*(self._renew(running) for running in list(self._jobs.values())))

    async def _renew(self, running: Running) -> None:
        try:
            async with asyncio.timeout(RENEW_EVERY_S):
                await retry_redis(lambda: self._store.renew(running.lease))
        except (Fenced, CancelRequested) as why:
            running.interrupt(why)
        except (RedisError, TimeoutError) as error:
            log.warning("%s: lease not renewed: %r", running.lease.job_id, error)

    async def _show_card(self) -> None:
        while True:
            if not self._tools.captioner.alive:
                self._engine_is_dead()
                return
            card = self._card.model_copy(update={"running": len(self._jobs)})
            try:
                await self._store.show_worker(card)
            except RedisError as error:
                log.warning("Redis cannot be reached: %s", error)
            await asyncio.sleep(SHOW_EVERY_S)

    def _engine_is_dead(self) -> None:
        if not self.engine_died and not self._stopping:
            self.engine_died = True
            log.error("the captioning engine is dead")
            self._on_engine_death()

    async def stop(self, drain_s: float) -> None:
        """Take nothing more, let jobs in work go on for `drain_s`, give the others back."""
        self._stopping = True
        for chore in self._chores[1:]:
            chore.cancel()
        if self._attempts:
            await asyncio.wait(self._attempts, timeout=0 if self.engine_died else drain_s)
        for running in list(self._jobs.values()):
            running.interrupt(Released())
        if self._attempts:
            await asyncio.wait(self._attempts, timeout=RELEASE_TIMEOUT_S)
        self._chores[0].cancel()
        try:
            async with asyncio.timeout(RELEASE_TIMEOUT_S):
                await self._store.hide_worker(self._card.id)
        except (RedisError, TimeoutError):
            log.warning("Redis cannot be reached; the worker's card will expire")
