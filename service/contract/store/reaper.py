"""The reaper: finds jobs that no worker is processing although one should, and wakes or ends them.

Every worker and every gateway runs a reaper. Each job is checked in one atomic step (`scripts.REAP`), so that however
many reapers run, an expired lease is taken back once, a strike counts once, and a job ends once.
"""

import logging

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.contract.storage.interface import Storage
from service.contract.store.background import repeat
from service.contract.store.retry import refuses_writes
from service.contract.store.store import Store
from service.contract.store.wakeups import Wakeups

REAP_EVERY_S = 1.0
MAX_LEASED, MAX_QUEUED = 100, 25
"""How many jobs are checked at a time. Fewer queued ones, because each check of a queued job costs a write."""
POSTPONE_S = 60.0
"""A job that cannot be reaped, because its stored data is malformed, is checked again after this time."""

log = logging.getLogger("sharecap.reaper")


class Reaper:
    """`run` reaps every `REAP_EVERY_S` seconds and survives Redis outages."""

    def __init__(self, store: Store, wakeups: Wakeups, storage: Storage) -> None:
        self._store = store
        self._wakeups = wakeups
        self._storage = storage

    async def run(self) -> None:
        """Reap until cancelled."""
        await repeat(self.reap, REAP_EVERY_S, "reaping abandoned jobs", log)

    async def reap(self) -> None:
        """Wake or end the jobs that are due now, up to `MAX_LEASED` and `MAX_QUEUED`."""
        for job_id in await self._store.due(MAX_LEASED, MAX_QUEUED):
            try:
                await self._reap(job_id)
            except Exception as error:
                if isinstance(error, RedisConnectionError | RedisTimeoutError) or refuses_writes(error):
                    raise
                log.exception("%s: the reaper failed, next try in %g s", job_id, POSTPONE_S)
                await self._store.postpone(job_id, POSTPONE_S)

    async def _reap(self, job_id: str) -> None:
        reaped = await self._store.reap(job_id)
        if reaped is None:
            return
        if reaped.status.ended:
            log.warning("%s: %s by the reaper, no worker held it", job_id, reaped.status.value)
            await self._storage.delete_upload(job_id)
        else:
            await self._wakeups.wake(reaped.queue, job_id, reaped.epoch)
