"""Refuses new jobs before Redis' memory is full, so that the jobs that exist can still write their events.

It needs a memory limit of the server: `sharecap up` sets one, your own server needs `maxmemory` with the policy
`noeviction`. Without a limit no job is refused here, and the gateway logs a warning when it starts.
"""

import logging
import time
from functools import partial
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from service.contract.errors import StorageFull
from service.contract.store.retry import retry_redis

log = logging.getLogger(__name__)
CACHE_S = 0.5
"""How long an answer is used again."""
RESERVED = 0.2
"""Fraction of the memory that is left to the events of accepted jobs."""

NO_EVICTION = "noeviction"
MEMORY_FULL = "The service stores too many jobs at the moment. Delete jobs, or try again later."


class MemoryGuard:
    """Knows whether the server has memory for new jobs. `redis` must be allowed to use `INFO`."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis
        self._full = False
        self._checked_at = float("-inf")

    async def check(self) -> None:
        """Raise StorageFull if the server's memory is almost full."""
        if time.monotonic() - self._checked_at > CACHE_S:
            self._full = await self._is_full()
            self._checked_at = time.monotonic()
        if self._full:
            raise StorageFull(MEMORY_FULL)

    async def warn_if_ineffective(self) -> None:
        """Log a warning if the server's configuration makes the checks useless. Waits until Redis is reachable."""
        try:
            memory = await retry_redis(partial(self._redis.info, "memory"))
        except NoPermissionError:
            log.warning("Redis does not permit INFO, so jobs are accepted until its memory is full")
            return
        policy = memory.get("maxmemory_policy", NO_EVICTION)
        if not memory.get("maxmemory", 0):
            log.warning("Redis has no memory limit, so no job is refused when memory runs out: set maxmemory")
        elif policy != NO_EVICTION:
            log.warning(
                "Redis deletes data when its memory is full, so jobs can be lost: set maxmemory-policy to %s, not %s",
                NO_EVICTION,
                policy,
            )

    async def _is_full(self) -> bool:
        try:
            memory = await self._redis.info("memory")
        except NoPermissionError:
            return False
        limit: int = memory.get("maxmemory", 0)
        used: int = memory["used_memory"]
        return limit > 0 and used > (1 - RESERVED) * limit
