"""Runs jobs: claims them, keeps their leases, interrupts them if they are cancelled or lost.

A wake-up calls `JobRunner.run_job`, which claims a job on the worker's event loop and returns. The job is chosen by
`service/contract/store/turns.py`, and `shares.py` limits how many run at once. The attempts run there concurrently.
`pipeline.py` is what an attempt does, `outcomes.py` is how it ends.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import RedisError

from service.contract.jobs import JobKind, Record
from service.contract.store.background import repeat
from service.contract.store.leases import RENEW_EVERY_S, CancelRequested, Fenced, Lease, new_token
from service.contract.store.store import RetryingStore
from service.contract.store.wakeups import RESUMED, TEXT_QUEUES, Wakeups
from service.contract.store.worker_cards import CARD_EVERY_S, EngineState, WorkerCard
from workers import pipeline
from workers.attempt import Attempt, WorkerContext
from workers.outcomes import Outcomes, Released, after_engine_death
from workers.publisher import Publisher
from workers.shares import JobPlace, VideoPlaces

CLAIM_TIMEOUT_S = 60.0
RELEASE_TIMEOUT_S = 4.0
MAX_CLAIMS = 10
"""How often a worker tries again if another one has claimed the job in turn before it."""
LOOK_EVERY_S = 1.0
"""A worker looks this often for jobs that wait without a wake-up."""
PAUSE_S = 0.05

log = logging.getLogger("sharecap.worker")


@dataclass
class RunningJob:
    """A claimed job.

    `progress` is set when the attempt finishes a text. `supervisor` runs for the whole attempt, `work` is the pipeline.
    `reason` is why the work was interrupted.
    """

    lease: Lease
    record: Record
    place: JobPlace
    progress: asyncio.Event = field(default_factory=asyncio.Event)
    supervisor: "asyncio.Task[None] | None" = None
    work: "asyncio.Task[None] | None" = None
    reason: Exception | None = None

    def start(self, attempt: Attempt) -> "asyncio.Task[None]":
        """Start the pipeline, already cancelled if the job was interrupted before."""
        self.work = asyncio.create_task(pipeline.run(attempt))
        if self.reason is not None:
            self.work.cancel()
        return self.work

    def interrupt(self, reason: Exception) -> None:
        """Cancel the pipeline. Only the first reason counts."""
        if self.reason is None:
            self.reason = reason
            if self.work is not None:
                self.work.cancel()


class JobRunner:
    """Runs all jobs of a worker. Lives on the worker's event loop, except for `run_job` and `open_queues`.

    `on_engine_death` is called once if the engine dies; this worker cannot caption anything after that.
    """

    def __init__(
        self,
        context: WorkerContext,
        store: RetryingStore,
        wakeups: Wakeups,
        card: WorkerCard,
        on_engine_death: Callable[[], None],
    ) -> None:
        self._context = context
        self._store = store
        self._outcomes = Outcomes(store, wakeups)
        self._card = card
        self._on_engine_death = on_engine_death
        self._jobs: dict[Lease, RunningJob] = {}
        self._places = VideoPlaces(card.slots, context.settings)
        self._claiming = asyncio.Lock()
        self._job_ended = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_chance = asyncio.Lock()
        self._waiting_for_last_chance: set[str] = set()
        self._loop = asyncio.get_running_loop()
        self._renewing = asyncio.create_task(repeat(self._renew_leases, RENEW_EVERY_S, "renewing leases", log))
        self._showing_card = asyncio.create_task(repeat(self._show_card, CARD_EVERY_S, "showing the card", log))
        self._taking = asyncio.create_task(repeat(self._take_waiting, PAUSE_S, "taking waiting jobs", log))
        self._stopping = False
        self.engine_died = False

    # -- called from the main thread

    @property
    def open_queues(self) -> tuple[str, ...]:
        """The RQ queues of jobs that this worker has room for, in order of priority."""
        return TEXT_QUEUES if self._stopping else self._places.open_queues

    def run_job(self, job_id: str) -> None:
        """Claim the job whose turn it is, and start an attempt. `job_id` is the job that was woken (`store/turns.py`).

        Returns once that is done, or if there is nothing to claim.
        """
        asyncio.run_coroutine_threadsafe(self._start(job_id), self._loop).result(CLAIM_TIMEOUT_S)

    # -- one job

    async def _start(self, woken: str = "") -> bool:
        """Start an attempt at the job whose turn it is. Returns False if there is none that this worker can take."""
        for _ in range(MAX_CLAIMS):
            async with self._claiming:
                if not self._accepts_jobs:
                    return False  # the reaper wakes another worker
                job_id = await self._store.next_job(self._places.room(), woken)
                if job_id is None or await self._start_job(job_id):
                    return job_id is not None
        return False

    async def _start_job(self, job_id: str) -> bool:
        """Claim this job, or let it wait for its last chance. Returns False if another worker has claimed it."""
        if not await self._store.on_last_chance(job_id):
            return await self._claim(job_id) is not None
        if job_id not in self._waiting_for_last_chance:
            self._waiting_for_last_chance.add(job_id)
            task = self._create_task(self._run_last_chance(job_id))
            task.add_done_callback(lambda _: self._waiting_for_last_chance.discard(job_id))
        return True

    async def _take_waiting(self) -> None:
        """Wait for a moment or until a job ends, then start the jobs that are waiting without a wake-up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_EVERY_S):
                await self._job_ended.wait()
        self._job_ended.clear()
        while await self._start():
            pass

    @property
    def _accepts_jobs(self) -> bool:
        return not self._stopping and not self.engine_died

    async def _claim(self, job_id: str) -> RunningJob | None:
        token = f"{self._card.id}-{new_token()}"
        lease = await self._store.claim(job_id, token)
        record = await self._store.record(job_id) if lease else None
        if lease is None or record is None:
            return None
        place = self._places.enter(record, resumed=lease.epoch > 1)
        superseded = [job for job in self._jobs.values() if job.lease.job_id == job_id]
        job = self._jobs[lease] = RunningJob(lease, record, place)
        job.supervisor = self._create_task(self._supervise(job, superseded))
        return job

    async def _run_last_chance(self, job_id: str) -> None:
        """Run a job that one more strike or stall would end. Only one runs at a time: it may kill this worker.

        The wait ends when the job finishes a text. The job is not claimed before its turn, so that the failure of
        another job does not count against it.
        """
        async with self._last_chance:
            if not await self._has_slot_for(job_id):
                return  # the reaper wakes the job again
            job = await self._claim(job_id)
            if job is not None and job.supervisor is not None:
                progress = asyncio.create_task(job.progress.wait())
                await asyncio.wait((progress, job.supervisor), return_when=asyncio.FIRST_COMPLETED)
                progress.cancel()

    async def _has_slot_for(self, job_id: str) -> bool:
        known = await self._store.kind_and_status(job_id)
        is_video = known is not None and known.kind is JobKind.VIDEO
        return self._accepts_jobs and not (is_video and RESUMED not in self.open_queues)

    def _create_task(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Return a task that `stop` waits for."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _supervise(self, job: RunningJob, superseded: list[RunningJob]) -> None:
        """Run an attempt at the job and make sure that it ends in exactly one way.

        `superseded`: attempts at the same job that lost their lease during a Redis outage and have not noticed yet.
        """
        try:
            for lost in superseded:
                lost.interrupt(Fenced(lost.lease.job_id))
            await asyncio.gather(*(lost.supervisor for lost in superseded if lost.supervisor), return_exceptions=True)
            attempt = await self._begin(job)
            attempt.enter_slot = job.place.enter_slot
            try:
                await job.start(attempt)
            except asyncio.CancelledError:
                await self._end(attempt, job.lease, job.reason or Released())
            except Exception as error:
                await self._end(attempt, job.lease, error)
        except Exception:
            log.exception("%s: the attempt failed unexpectedly", job.lease.job_id)
        finally:
            job.place.leave()
            self._jobs.pop(job.lease, None)
            self._job_ended.set()

    async def _begin(self, job: RunningJob) -> Attempt:
        """Return an attempt that continues from the job's stored events."""
        stored = [event async for event in self._store.events(job.record.id)]
        publisher = Publisher(self._store, job.lease, stored[-1].seq if stored else 0, job.progress)
        return Attempt.resume(self._context, job.record, stored, publisher, job.lease.epoch)

    async def _end(self, attempt: Attempt, lease: Lease, reason: Exception) -> None:
        if not self._context.captioner.alive:
            self._report_engine_death()
            # If this worker was stopping before, Ctrl-C may have reached the engine, too.
            lost_turn = self.engine_died and attempt.turn_runner.lost_turn
            reason = after_engine_death(reason, lost_turn=lost_turn, stalled=self._context.captioner.stalled)
        await self._outcomes.end(attempt, lease, reason)

    # -- all jobs

    async def _renew_leases(self) -> None:
        await asyncio.gather(*(self._renew(job) for job in list(self._jobs.values())))

    async def _renew(self, job: RunningJob) -> None:
        try:
            async with asyncio.timeout(RENEW_EVERY_S):
                await self._store.renew(job.lease)
        except (Fenced, CancelRequested) as reason:
            job.interrupt(reason)
        except (RedisError, TimeoutError) as error:
            log.warning("%s: could not renew the lease: %r", job.lease.job_id, error)

    async def _show_card(self) -> None:
        """Update this worker's card in Redis."""
        if self._context.captioner.alive:
            await self._store.show_worker(self._card.model_copy(update={"running": len(self._jobs)}))
        else:
            self._report_engine_death()

    def _report_engine_death(self) -> None:
        if self._accepts_jobs:
            self.engine_died = True
            log.error("the captioning engine is dead")
            self._on_engine_death()

    async def stop(self, drain_s: float) -> None:
        """Take no more jobs, give running ones `drain_s` seconds to finish, then give the others back."""
        self._stopping = True
        self._showing_card.cancel()
        self._taking.cancel()
        await self._wait_for_tasks(0 if self.engine_died else drain_s)
        for job in list(self._jobs.values()):
            job.interrupt(Released())
        await self._wait_for_tasks(RELEASE_TIMEOUT_S)
        self._renewing.cancel()
        await self._remove_card()

    async def _wait_for_tasks(self, timeout_s: float) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    @property
    def _engine_state(self) -> EngineState:
        if self._context.captioner.alive:
            return "alive"
        return "stalled" if self._context.captioner.stalled else "died"

    async def _remove_card(self) -> None:
        """Delete this worker's card. If the engine is dead, leave a card that says so."""
        try:
            async with asyncio.timeout(RELEASE_TIMEOUT_S):
                if self.engine_died:
                    await self._store.show_worker(self._card.model_copy(update={"engine": self._engine_state}))
                else:
                    await self._store.hide_worker(self._card.id)
        except (RedisError, TimeoutError):
            log.warning("cannot reach Redis; the worker's card will expire")
