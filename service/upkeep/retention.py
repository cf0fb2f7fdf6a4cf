"""Retention: deletes jobs `RETENTION_S` after their end, text jobs after `TEXT_RETENTION_S`, and files without a job.

Every gateway runs these tasks; a key with a time to live ensures that each task runs only once per period. Deleting a
job removes its record, events, files and index entries. Its idempotency entry stays for the rest of its 24 hours.
"""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from service.access.rate_limits import RateLimits
from service.contract.errors import UnreadableJob
from service.contract.jobs import JobStatus
from service.contract.storage.interface import FileKind, Storage, StoredFile
from service.contract.store.background import repeat
from service.contract.store.entries import Entry, entry_of, parsing
from service.contract.store.keys import JOBS, TEXTS, events_key, job_key, swept_key
from service.contract.store.store import Store
from service.intake.idempotency import Idempotency

log = logging.getLogger(__name__)
SWEEP_EVERY_S = 3600.0
MAX_EXPIRE_EVERY_S = 60.0
ABANDONED_AFTER_S = 24 * 3600
"""A file without a job may belong to an upload in progress, unless nothing was written to it for this long."""
UNFINISHED = frozenset(status for status in JobStatus if not status.ended)
JOBS_PER_READ = 100
"""How many jobs or files are looked up in Redis at once."""


class Retention:
    """`run` is the background task; `delete_job` also serves clients that delete a job."""

    def __init__(
        self,
        store: Store,
        idempotency: Idempotency,
        limits: RateLimits,
        storage: Storage,
        retention_s: float,
        *,
        text_retention_s: float = 0.0,
    ) -> None:
        self._store, self._idempotency, self._limits = store, idempotency, limits
        self._storage = storage
        text_retention_s = min((s for s in (retention_s, text_retention_s) if s), default=0.0)
        periods = ((JOBS, retention_s), (TEXTS, text_retention_s))
        self.periods = {index: period_s for index, period_s in periods if period_s}
        """How long ended jobs are kept, by the index that lists them. Jobs in no index here are kept."""

    async def run(self) -> None:
        """Delete expired jobs and unneeded files until cancelled. Survives Redis outages."""
        every_s = min([MAX_EXPIRE_EVERY_S, *(max(1.0, period_s / 10) for period_s in self.periods.values())])

        async def delete_due() -> None:
            if self.periods and await self._claim_turn("expired", every_s / 2):
                await self.expire()
            if await self._claim_turn("orphans", SWEEP_EVERY_S):
                await self.sweep()

        await asyncio.sleep(every_s)
        await repeat(delete_due, every_s, "deleting expired jobs and files", log)

    async def _claim_turn(self, task: str, every_s: float) -> bool:
        """Whether this gateway is the first to claim the task in this period."""
        return bool(await self._store.redis.set(swept_key(task), 1, nx=True, px=int(every_s * 1000)))

    async def delete_job(self, job_id: str) -> None:
        """Delete a job that has ended, is being cancelled or is unreadable. A worker that holds its lease is fenced."""
        try:
            record = await self._store.record(job_id)
        except UnreadableJob:
            record = None
        if record is not None:
            await self._idempotency.mark_removed(record)
        await self._store.delete(job_id)
        if record is not None:
            await self._limits.uncount_job(record)
        await self._storage.delete_job_files(job_id)

    async def expire(self) -> None:
        """Delete the jobs that ended at least their retention period ago."""
        seconds, micros = await self._store.redis.time()
        for index, period_s in self.periods.items():
            await self._expire(index, int((seconds + micros / 1e6 - period_s) * 1000))

    async def _expire(self, index: str, cutoff_ms: int) -> None:
        """Delete the jobs in `index` that ended before the cutoff."""
        kept = 0
        while rows := await self._store.redis.zrangebyscore(
            index, "-inf", cutoff_ms, kept, JOBS_PER_READ, withscores=True
        ):
            created_ms = {job_id: int(score) for job_id, score in rows}
            for job_id, ended_ms in (await self._end_times_ms(created_ms)).items():
                if ended_ms is not None and ended_ms <= cutoff_ms:
                    with _logging_failure(job_id):
                        await self.delete_job(job_id)
                else:
                    kept += 1

    async def _end_times_ms(self, created_ms: dict[str, int]) -> dict[str, int | None]:
        """Return the time at which each job ended, None if it has not. `created_ms` has the jobs' creation times.

        If the final event of an ended job is lost or unreadable, the time of its creation is returned instead.
        """
        async with self._store.redis.pipeline(transaction=False) as pipe:
            for job_id in created_ms:
                pipe.hget(job_key(job_id), "status")
                pipe.xrevrange(events_key(job_id), count=1)
            replies = await pipe.execute()
        end_times_ms: dict[str, int | None] = {}
        for (job_id, created), status, rows in zip(created_ms.items(), replies[::2], replies[1::2], strict=True):
            entry = _newest(job_id, rows)
            if entry and entry.last:
                end_times_ms[job_id] = entry.at_ms
            else:
                end_times_ms[job_id] = None if status in UNFINISHED else created
        return end_times_ms

    async def sweep(self) -> None:
        """Delete uploads of jobs that have ended, and abandoned files of jobs that do not exist."""
        for file, status in await self._stored_files(FileKind.UPLOAD):
            if status.ended if status else _is_abandoned(file):
                await self._delete_file(file)
        for kind in (FileKind.KEYFRAMES, FileKind.VIDEO):
            for file, status in await self._stored_files(kind):
                if status is None and _is_abandoned(file):
                    await self._delete_file(file)

    async def _delete_file(self, file: StoredFile) -> None:
        with _logging_failure(file.job_id):
            await self._storage.delete_file(file)

    async def _stored_files(self, kind: FileKind) -> list[tuple[StoredFile, JobStatus | None]]:
        """Return the stored files of this kind, each with its job's status or None if the job does not exist.

        Leaves out the files of unreadable jobs.
        """
        files = await self._storage.list_files(kind)
        statuses: list[str | None] = []
        for start in range(0, len(files), JOBS_PER_READ):
            async with self._store.redis.pipeline(transaction=False) as pipe:
                for file in files[start : start + JOBS_PER_READ]:
                    pipe.hget(job_key(file.job_id), "status")
                statuses += await pipe.execute()
        readable: list[tuple[StoredFile, JobStatus | None]] = []
        for file, status in zip(files, statuses, strict=True):
            with suppress(UnreadableJob), parsing(file.job_id):
                readable.append((file, None if status is None else JobStatus(status)))
        return readable


@contextmanager
def _logging_failure(job_id: str) -> Iterator[None]:
    """Log that files could not be deleted. The next jobs and files follow all the same."""
    try:
        yield
    except OSError as error:
        log.warning("%s: cannot delete its files: %s", job_id, error)


def _newest(job_id: str, rows: list[tuple[str, dict[str, str]]]) -> Entry | None:
    with suppress(UnreadableJob), parsing(job_id):
        return entry_of(*rows[0]) if rows else None
    return None


def _is_abandoned(file: StoredFile) -> bool:
    return time.time() - file.changed_at > ABANDONED_AFTER_S
