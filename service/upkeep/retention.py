"""Retention: deletes jobs `RETENTION_S` after their end, and files that no job needs.

Every gateway runs these tasks; a key with a time to live ensures that each task runs only once per period. Deleting a
job removes its record, events, files and index entries. Its idempotency entry stays for the rest of its 24 hours.
"""

import asyncio
import logging
import time

from service.access.rate_limits import RateLimits
from service.contract.jobs import JobStatus, Record
from service.contract.storage.interface import FileKind, Storage, StoredFile
from service.contract.store.background import repeat
from service.contract.store.entries import entry_of
from service.contract.store.keys import JOBS, events_key, job_key, swept_key
from service.contract.store.store import Store
from service.intake.idempotency import Idempotency

log = logging.getLogger(__name__)
SWEEP_EVERY_S = 3600.0
MAX_EXPIRE_EVERY_S = 60.0
ABANDONED_AFTER_S = 24 * 3600
"""A file without a job may belong to an upload in progress, unless nothing was written to it for this long."""
PAGE = 100
"""How many jobs or files are looked up in Redis at once."""


class Retention:
    """`run` is the background task; `delete_job` also serves clients that delete a job."""

    def __init__(
        self, store: Store, idempotency: Idempotency, limits: RateLimits, storage: Storage, retention_s: float
    ) -> None:
        self._store, self._idempotency, self._limits = store, idempotency, limits
        self._storage, self._retention_s = storage, retention_s

    async def run(self) -> None:
        """Delete expired jobs and unneeded files until cancelled. Survives Redis outages."""
        every_s = min(MAX_EXPIRE_EVERY_S, max(1.0, self._retention_s / 10)) if self._retention_s else MAX_EXPIRE_EVERY_S

        async def delete_due() -> None:
            if self._retention_s and await self._claim_turn("expired", every_s / 2):
                await self.expire()
            if await self._claim_turn("orphans", SWEEP_EVERY_S):
                await self.sweep()

        await asyncio.sleep(every_s)
        await repeat(delete_due, every_s, "deleting expired jobs and files", log)

    async def _claim_turn(self, task: str, every_s: float) -> bool:
        """Whether this gateway is the first to claim the task in this period."""
        return bool(await self._store.redis.set(swept_key(task), 1, nx=True, px=int(every_s * 1000)))

    async def delete_job(self, job_id: str) -> None:
        """Delete a job that has ended or is being cancelled. A worker that still holds its lease is fenced."""
        record = await self._readable_record(job_id)
        if record is not None:
            await self._idempotency.mark_removed(record)
        await self._store.delete(job_id)
        if record is not None:
            await self._limits.uncount_job(record)
        await self._storage.delete_job_files(job_id)

    async def _readable_record(self, job_id: str) -> Record | None:
        try:
            return await self._store.record(job_id)
        except ValueError:
            log.exception("%s: cannot read the record", job_id)
            return None

    async def expire(self) -> None:
        """Delete the jobs that ended at least `retention_s` ago."""
        seconds, micros = await self._store.redis.time()
        cutoff_ms = int((seconds + micros / 1e6 - self._retention_s) * 1000)
        created_before = await self._store.redis.zrangebyscore(JOBS, "-inf", cutoff_ms)
        for start in range(0, len(created_before), PAGE):
            job_ids = created_before[start : start + PAGE]
            for job_id, ended_ms in zip(job_ids, await self._end_times_ms(job_ids), strict=True):
                if ended_ms is not None and ended_ms <= cutoff_ms:
                    await self.delete_job(job_id)

    async def _end_times_ms(self, job_ids: list[str]) -> list[int | None]:
        """Return the time of each job's final event; None for jobs that have not ended."""
        async with self._store.redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.xrevrange(events_key(job_id), count=1)
            newest = [entry_of(*rows[0]) if rows else None for rows in await pipe.execute()]
        return [entry.at_ms if entry and entry.last else None for entry in newest]

    async def sweep(self) -> None:
        """Delete uploads of jobs that have ended, and abandoned files of jobs that do not exist."""
        for file, status in await self._stored_files(FileKind.UPLOAD):
            if status.ended if status else _is_abandoned(file):
                await self._storage.delete_file(file)
        for file, status in await self._stored_files(FileKind.KEYFRAMES):
            if status is None and _is_abandoned(file):
                await self._storage.delete_file(file)

    async def _stored_files(self, kind: FileKind) -> list[tuple[StoredFile, JobStatus | None]]:
        """Return all stored files of this kind, each with its job's status or None if the job does not exist."""
        files = await self._storage.list_files(kind)
        statuses: list[str | None] = []
        for start in range(0, len(files), PAGE):
            async with self._store.redis.pipeline(transaction=False) as pipe:
                for file in files[start : start + PAGE]:
                    pipe.hget(job_key(file.job_id), "status")
                statuses += await pipe.execute()
        return [(file, JobStatus(status) if status else None) for file, status in zip(files, statuses, strict=True)]


def _is_abandoned(file: StoredFile) -> bool:
    return time.time() - file.changed_at > ABANDONED_AFTER_S
