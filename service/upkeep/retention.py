"""What goes, and when: ended jobs after `RETENTION_S`, and files that no job needs.

    sharecap:swept:{what}  string  `expired` or `orphans`: one gateway has looked lately; with a time to live

Every gateway runs one; whoever comes first looks, and what two remove at once is gone once. What a job leaves is its
record, its events, its keyframes, its entry in the idempotency store, and its upload, which the worker removes before
the job's last event.
"""

import asyncio
import logging
import os
import shutil
import time
from pathlib import Path

from redis.exceptions import RedisError

from service.access.rate_limits import Limits
from service.contract.jobs import JobStatus
from service.contract.storage.local import keyframes_dir, upload_path
from service.contract.store.store import JOBS, Store, entry_of, events_key, job_key
from service.intake.idempotency import Idempotency

log = logging.getLogger(__name__)
ORPHANS_EVERY_S = 3600
FORSAKEN_AFTER_S = 24 * 3600
"""A file without a job may be an upload under way; not if nothing was written to it for so long."""
AT_ONCE = 100


class Retention:
    """`run` is the task that removes; `remove` does it at a client's wish."""

    def __init__(
        self, store: Store, idempotency: Idempotency, limits: Limits, data_dir: Path, retention_s: float
    ) -> None:
        self._store, self._idempotency, self._limits = store, idempotency, limits
        self._data_dir, self._retention_s = data_dir, retention_s

    async def run(self) -> None:
        """Remove what is due, for ever; outlives a Redis that goes away and comes back."""
        every_s = min(60.0, max(1.0, self._retention_s / 10)) if self._retention_s else 60.0
        while True:
            await asyncio.sleep(every_s)
            try:
                if self._retention_s and await self._my_turn("expired", every_s / 2):
                    await self.expire()
                if await self._my_turn("orphans", ORPHANS_EVERY_S):
                    await self.sweep()
            except (RedisError, OSError) as error:
                log.warning("nothing can be removed now: %s", error)
            except Exception:
                log.exception("nothing can be removed now")

    async def _my_turn(self, what: str, every_s: float) -> bool:
        return bool(await self._store.redis.set(f"sharecap:swept:{what}", 1, nx=True, px=int(every_s * 1000)))

    async def remove(self, job_id: str) -> None:
        """Remove all of a job that nobody works on, or that is being cancelled: a worker still at it is fenced."""
        try:
            record = await self._store.record(job_id)
        except ValueError:
            log.exception("%s: the record cannot be read", job_id)
            record = None
        if record is not None:
            await self._idempotency.let_go(record)
        await self._store.delete(job_id)
        if record is not None:
            await self._limits.forget_job(record)
        await asyncio.to_thread(self._remove_files, job_id)

    async def remove_upload(self, job_id: str) -> None:
        """Remove the video of a job that has ended."""
        await asyncio.to_thread(upload_path(self._data_dir, job_id).unlink, missing_ok=True)

    async def expire(self) -> None:
        """Remove the jobs whose end is `retention_s` ago or longer."""
        seconds, micros = await self._store.redis.time()
        cutoff_ms = int((seconds + micros / 1e6 - self._retention_s) * 1000)
        kept = 0
        while job_ids := await self._store.redis.zrangebyscore(JOBS, "-inf", cutoff_ms, start=kept, num=AT_ONCE):
            for job_id, ended_ms in zip(job_ids, await self._ends(job_ids), strict=True):
                if ended_ms is None or ended_ms > cutoff_ms:
                    kept += 1
                    continue
                await self.remove(job_id)

    async def _ends(self, job_ids: list[str]) -> list[int | None]:
        """Return when (ms) each job's last event was written; none for one that has not ended."""
        async with self._store.redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.xrevrange(events_key(job_id), count=1)
            newest = [entry_of(*rows[0]) if rows else None for rows in await pipe.execute()]
        return [entry.at_ms if entry and entry.last else None for entry in newest]

    async def sweep(self) -> None:
        """Remove uploads of jobs that have ended, and files of jobs that are not there."""
        for path, status in await self._found_in(upload_path(self._data_dir, "")):
            if status.ended if status else await asyncio.to_thread(_is_forsaken, path):
                await asyncio.to_thread(path.unlink, missing_ok=True)
        for path, status in await self._found_in(keyframes_dir(self._data_dir, "")):
            if status is None and await asyncio.to_thread(_is_forsaken, path):
                await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)

    async def _found_in(self, directory: Path) -> list[tuple[Path, JobStatus | None]]:
        """Return what lies in a directory, each with the status of the job that it is named after."""
        paths = await asyncio.to_thread(_entries, directory)
        found: list[str | None] = []
        for start in range(0, len(paths), AT_ONCE):
            async with self._store.redis.pipeline(transaction=False) as pipe:
                for path in paths[start : start + AT_ONCE]:
                    pipe.hget(job_key(path.name.partition(".")[0]), "status")
                found += await pipe.execute()
        return [(path, JobStatus(status) if status else None) for path, status in zip(paths, found, strict=True)]

    def _remove_files(self, job_id: str) -> None:
        upload_path(self._data_dir, job_id).unlink(missing_ok=True)
        shutil.rmtree(keyframes_dir(self._data_dir, job_id), ignore_errors=True)


def _entries(directory: Path) -> list[Path]:
    return list(directory.iterdir()) if directory.is_dir() else []


def _is_forsaken(path: Path) -> bool:
    try:
        told = path.stat()
    except FileNotFoundError:
        return False
    return time.time() - max(told.st_mtime, _named_at(told)) > FORSAKEN_AFTER_S


def _named_at(told: os.stat_result) -> float:
    """A new name sets this time, the bytes' own it does not."""
    return told.st_ctime
