"""One attempt at one job: its state so far, and everything that the pipeline needs to continue it.

An attempt starts from the job's stored events, and does not repeat what they record as done.
"""

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from service.contract.events import Keyframes, StoredEvent, fold
from service.contract.jobs import JobState, Record, Timings
from service.contract.sandbox.subprocesses import ChildStarter
from service.contract.storage.interface import Storage
from workers.models.engine import Captioner, FrameEncoder
from workers.publisher import EventSink
from workers.roles.turn_runner import TurnRunner, patience_s
from workers.settings import Settings
from workers.shares import EngineShares
from workers.video.decoders import Decoders
from workers.video.frames import DecodeLimits

JobLookup = Callable[[str], Awaitable[JobState | None]]
"""Returns the job with this id, or None if it does not exist."""


async def no_slot_needed() -> None:
    """The default of `Attempt.enter_slot`: outside a worker, no slots are counted."""


async def no_other_jobs(job_id: str) -> JobState | None:
    """A `JobLookup` for a pipeline without a store: clips need a parent job and fail with NotFound."""
    return None


@dataclass(frozen=True)
class WorkerContext:
    """What all jobs of a worker share.

    `decoders` limits how many videos are decoded at once, `engine_shares` how much of the engine one API key uses.
    `find_job` finds the parent job of a clip. `starter` starts the children that open videos; None: one for each child.
    """

    settings: Settings
    storage: Storage
    captioner: Captioner
    encoder: FrameEncoder
    decoders: Decoders
    decode_limits: DecodeLimits = field(default_factory=DecodeLimits)
    find_job: JobLookup = no_other_jobs
    engine_shares: EngineShares = field(default_factory=EngineShares)
    starter: ChildStarter | None = None


@dataclass(frozen=True)
class Fetched:
    """Size and digest of a file that was downloaded."""

    bytes: int
    sha256: str


@dataclass
class Attempt:
    """The `number`-th attempt (from 1) at `record`. `job` is the state that earlier attempts left."""

    context: WorkerContext
    record: Record
    job: JobState
    number: int
    keyframes_complete: bool
    events: EventSink
    turn_runner: TurnRunner
    timings: Timings = field(default_factory=Timings)
    fetched: Fetched | None = None
    """The file that this attempt downloaded, if the job has a URL."""
    enter_slot: Callable[[], Awaitable[None]] = no_slot_needed
    """Waits for a video slot, unless the job holds one already."""
    _active: Counter[str] = field(default_factory=Counter)
    _started_at: dict[str, float] = field(default_factory=dict)

    @classmethod
    def resume(
        cls, context: WorkerContext, record: Record, stored: Sequence[StoredEvent], events: EventSink, epoch: int = 1
    ) -> "Attempt":
        """Return the attempt that follows the `stored` events of the job, and writes its own to `events`.

        `epoch` is the lease's; it tells the engine requests of two attempts at the same job apart.
        """
        job = fold(record, stored)
        queued_s = (datetime.now(UTC) - record.created_at).total_seconds()
        return cls(
            context=context,
            record=record,
            job=job,
            number=job.attempts + 1,
            keyframes_complete=any(isinstance(s.event, Keyframes) and s.event.complete for s in stored),
            events=events,
            turn_runner=TurnRunner(
                context.captioner,
                events,
                f"{record.id}-{epoch}",
                context.engine_shares.permit(record),
                patience_s(record),
            ),
            timings=Timings(queued=max(0.0, queued_s)),
        )

    async def delete_upload(self) -> None:
        """Delete the job's upload; `service/contract/storage/interface.py` says when."""
        await self.context.storage.delete_upload(self.record.id)

    @contextmanager
    def timed(self, stage: Literal["decode", "keyframes", "captioning", "summary"]) -> Iterator[None]:
        """Add the time spent in this block to the stage. Overlapping blocks of the same stage count once."""
        if not self._active[stage]:
            self._started_at[stage] = time.monotonic()
        self._active[stage] += 1
        try:
            yield
        finally:
            self._active[stage] -= 1
            if not self._active[stage]:
                spent_s = time.monotonic() - self._started_at[stage]
                setattr(self.timings, stage, (getattr(self.timings, stage) or 0.0) + spent_s)
