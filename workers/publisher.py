"""Events -> the job's stream, under the lease: the only way in which a job says anything.

Each event has its place. A write whose answer was lost is repeated at the same place, which the store drops if the
first one got through; so a lost connection neither loses an event nor doubles one.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.contract.events import Event
from service.contract.store.connection import refuses_now
from service.contract.store.store import CancelRequested, Fenced, Lease, Store, StreamTruncated

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0

T = TypeVar("T")


async def retry_redis(call: Callable[[], Awaitable[T]]) -> T:
    """Return `call()`, tried again for as long as Redis cannot be reached or takes no writes."""
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            return await call()
        except (RedisConnectionError, RedisTimeoutError, ResponseError) as error:
            if isinstance(error, ResponseError) and not refuses_now(error):
                raise
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


class Publisher:
    """Appends to one job's stream; `seq` is the newest place that is taken. Sets `progress` with a finished text."""

    def __init__(self, store: Store, lease: Lease, seq: int, progress: asyncio.Event | None = None) -> None:
        self.lease = lease
        self._store = store
        self._seq = seq
        self._progress = progress or asyncio.Event()
        self._order = asyncio.Lock()
        self._writes: set[asyncio.Task[None]] = set()

    async def append(self, event: Event) -> None:
        """Write `event`. Raises Fenced, StreamTruncated or CancelRequested (the event is written then, too).

        A caller that is cancelled leaves the write behind to be finished: whoever writes next must know its place.
        """
        write = asyncio.create_task(self._append(event))
        self._writes.add(write)
        write.add_done_callback(self._forget)
        await asyncio.shield(write)

    async def _append(self, event: Event) -> None:
        async with self._order:
            seq = self._seq + 1
            try:
                await retry_redis(lambda: self._store.append(self.lease, seq, event))
            except CancelRequested:
                self._seq = seq
                raise
            self._seq = seq
            if event.progress:
                self._progress.set()

    def _forget(self, write: asyncio.Task[None]) -> None:
        self._writes.discard(write)
        if not write.cancelled() and isinstance(write.exception(), Fenced | StreamTruncated | CancelRequested):
            return  # the caller may be gone: it is told again by the next write or renewal
