"""The reaper: finds the jobs that nobody works on although somebody should, and wakes or ends them.

Every worker and every gateway runs one. Each job is looked at in one atomic step (`scripts.REAP`), so that however many
look at it, a lease is taken back once, a strike counts once, and a job ends once.
"""

import asyncio
import logging
from pathlib import Path

from redis.exceptions import RedisError

from service.contract.storage.local import upload_path
from service.contract.store.store import Store
from service.contract.store.wakeups import Wakeups

REAP_EVERY_S = 1.0
MOST_HELD, MOST_QUEUED = 100, 25
"""How many jobs one look takes up; what is queued is looked at in turn, for that costs a write each."""

log = logging.getLogger("sharecap.reaper")


class Reaper:
    """`run` looks every `REAP_EVERY_S` seconds; it outlives a Redis that goes away and comes back."""

    def __init__(self, store: Store, wakeups: Wakeups, data_dir: Path) -> None:
        self._store = store
        self._wakeups = wakeups
        self._data_dir = data_dir

    async def run(self) -> None:
        """Reap for ever."""
        while True:
            try:
                await self.reap()
            except (RedisError, OSError) as error:
                log.warning("jobs that were left behind cannot be looked for: %s", error)
            except Exception:
                log.exception("jobs that were left behind cannot be looked for")
            await asyncio.sleep(REAP_EVERY_S)

    async def reap(self) -> None:
        """Wake, or end, what is due now: so many at most."""
        for job_id in await self._store.due(MOST_HELD, MOST_QUEUED):
            found = await self._store.reap(job_id)
            if found is None:
                continue
            if found.status.ended:
                log.warning("%s: %s, with nobody at work on it", job_id, found.status.value)
                upload_path(self._data_dir, job_id).unlink(missing_ok=True)
            else:
                await self._wakeups.wake(found.kind, job_id, found.epoch)
