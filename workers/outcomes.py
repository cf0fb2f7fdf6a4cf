"""How an attempt at a job ends: what is written to the store for each reason that work on it stopped."""

import contextlib
import logging

from redis.exceptions import RedisError

from service.contract.errors import DecoderDied, EngineFailed, SharecapError
from service.contract.events import Cancelled, Failed
from service.contract.store.leases import MAX_STALLS, CancelRequested, Fault, Fenced, Lease, StreamTruncated
from service.contract.store.store import RetryingStore
from service.contract.store.wakeups import Wakeups
from workers.attempt import Attempt

log = logging.getLogger("sharecap.worker")


class Released(Exception):
    """The worker is stopping: the job is given back for another worker to continue."""


class EngineDied(EngineFailed):
    """The engine died. This job may have caused it, or another job on the same engine."""


class EngineStalled(EngineFailed):
    """The engine hung and was killed. The cause may be this job, another job, or a machine that is too slow."""

    def __init__(self) -> None:
        super().__init__(f"The captioning engine hung in {MAX_STALLS} attempts in a row.")


def after_engine_death(reason: Exception, *, lost_turn: bool, stalled: bool) -> Exception:
    """Return why an attempt ends after the engine has died, if it was interrupted by `reason`.

    The death counts only against jobs that had a turn in the engine. Other interrupted jobs are given back. A reason
    that does not come from the engine stays, such as a cancellation.
    """
    own_reason = isinstance(reason, SharecapError | Fenced | CancelRequested | StreamTruncated)
    if own_reason and not isinstance(reason, EngineFailed):
        return reason
    if not lost_turn:
        return Released()
    return EngineStalled() if stalled else EngineDied("The captioning engine stopped.")


class Outcomes:
    """Ends attempts so that each job has exactly one final event."""

    def __init__(self, store: RetryingStore, wakeups: Wakeups) -> None:
        self._store = store
        self._wakeups = wakeups

    async def end(self, attempt: Attempt, lease: Lease, reason: Exception) -> None:
        """Give the job back, fail it, cancel it or drop it, depending on the `reason` that work on it stopped."""
        await attempt.events.flush()
        try:
            await self._end(attempt, lease, reason)
        except Fenced:
            await self._clean_up_if_deleted(attempt)
        except StreamTruncated:
            await self._give_back(attempt, lease)

    async def _end(self, attempt: Attempt, lease: Lease, reason: Exception) -> None:
        match reason:
            case Fenced():
                await self._clean_up_if_deleted(attempt)
            case Released() | StreamTruncated():
                await self._give_back(attempt, lease)
            case CancelRequested():
                await self._close(attempt, lease, Cancelled())
            case DecoderDied() | EngineDied():
                await self._give_back_or_fail(attempt, lease, Fault.STRIKE, reason)
            case EngineStalled():
                await self._give_back_or_fail(attempt, lease, Fault.STALL, reason)
            case SharecapError():
                await self._close(attempt, lease, Failed.of(reason))
            case _:
                log.error("%s: unexpected error", attempt.record.id, exc_info=reason)
                await self._close(attempt, lease, Failed.of(EngineFailed("The worker met an unexpected error.")))

    async def _give_back_or_fail(self, attempt: Attempt, lease: Lease, fault: Fault, reason: SharecapError) -> None:
        """Release the job for another attempt and count the `fault`. If it was the last one, fail the job."""
        if not await self._give_back(attempt, lease, fault):
            await self._close(attempt, lease, Failed.of(reason))

    async def _give_back(self, attempt: Attempt, lease: Lease, fault: Fault | None = None) -> bool:
        """Release the job for another attempt. Returns False if this fault was its last: it is still held then."""
        given_back = await self._store.release(lease, fault)
        if given_back:
            with contextlib.suppress(RedisError):  # the reaper sends the wake-up then
                await self._wakeups.wake(attempt.record.kind, lease.job_id, lease.epoch)
        return given_back

    async def _close(self, attempt: Attempt, lease: Lease, event: Cancelled | Failed) -> None:
        """Write the job's final event. The upload is deleted before, while the lease keeps other workers off it."""
        with contextlib.suppress(CancelRequested):
            await self._store.renew(lease)
        await attempt.delete_upload()
        await attempt.events.append(event)

    async def _clean_up_if_deleted(self, attempt: Attempt) -> None:
        """Delete the files of a job whose record was deleted while it was running."""
        if await self._store.record(attempt.record.id) is None:
            await attempt.context.storage.delete_job_files(attempt.record.id)
