"""Follows the events of many jobs for many clients over one Redis connection.

One task waits for new events of all watched jobs and caches the latest few of each job. A client is only a position in
a stream: it takes the events after it from the cache, or from Redis if it has fallen too far behind for the cache. A
slow client therefore uses no extra memory.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from itertools import accumulate

from redis.exceptions import RedisError

from service.contract.errors import UnreadableJob
from service.contract.store.background import repeat
from service.contract.store.entries import Entry, entry_of, parsing
from service.contract.store.keys import events_key
from service.contract.store.store import Store

log = logging.getLogger(__name__)
CACHED_EVENTS = 256
"""How many of a watched job's latest events are cached."""
READ_EVENTS = 200
"""Maximum events of one job that one read of the reading task returns."""
CATCH_UP_EVENTS = 50
"""Maximum events read from Redis at once for a client that is behind the cache; at most twice its previous batch."""
BATCH_CHARS = 8192
"""Maximum characters of text that one client holds while it sends. A single longer event is still sent."""
BLOCK_MS = 100
"""How long one read waits. A newly watched job is included after this time at the latest."""
FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 2.0


class Channel:
    """The latest events of one watched job."""

    def __init__(self) -> None:
        self.cache: deque[Entry] = deque(maxlen=CACHED_EVENTS)
        self.newest: int | None = None
        """The position up to which the stream was read; None until the first client sets it."""
        self.changed = asyncio.Event()
        self.watchers = 0
        self.ended = False
        """Whether the job is deleted or unreadable."""

    def after(self, seq: int) -> list[Entry] | None:
        """Return the events after `seq`, or None if some of them have left the cache."""
        if self.newest is None:
            return None
        if seq >= self.newest:
            return []
        if not self.cache or self.cache[0].seq > seq + 1:
            return None
        return [entry for entry in self.cache if entry.seq > seq]

    def add(self, entries: list[Entry]) -> None:
        self.cache.extend(entries)
        self.newest = entries[-1].seq
        self.wake()

    def end(self) -> None:
        """End the streams of all clients."""
        self.ended = True
        self.wake()

    def wake(self) -> None:
        """Wake all clients that wait for `changed`."""
        self.changed.set()
        self.changed = asyncio.Event()


class Follower:
    """`run` is the single reading task; each client iterates over `follow`."""

    def __init__(self, store: Store, reader: Store) -> None:
        self._store = store
        self._reader = reader
        self._channels: dict[str, Channel] = {}
        self._wanted = asyncio.Event()
        self.closed = False

    async def run(self) -> None:
        """Read new events of all watched jobs until cancelled. Survives Redis outages."""
        await repeat(self._read, 0, "reading events", log, retry_s=FIRST_DELAY_S, max_retry_s=LONGEST_DELAY_S)

    async def _read(self) -> None:
        positions = {
            events_key(job_id): (job_id, channel, channel.newest)
            for job_id, channel in self._channels.items()
            if channel.newest is not None and not channel.ended
        }
        if not positions:
            self._wanted.clear()
            await self._wanted.wait()
            return
        after = {key: f"{newest}-0" for key, (*_, newest) in positions.items()}
        for key, rows in await self._reader.redis.xread(after, count=READ_EVENTS, block=BLOCK_MS) or ():
            job_id, channel, _ = positions[key]
            try:
                with parsing(job_id):
                    channel.add([entry_of(*row) for row in rows])
            except UnreadableJob:
                channel.end()

    async def follow(self, job_id: str, after: int, silence_s: float) -> AsyncGenerator[Entry | None]:
        """Yield the events after position `after` up to the final one.

        Yields None whenever `silence_s` seconds pass without an event. Ends early if the job is deleted or unreadable,
        or the process stops.
        """
        limit = CATCH_UP_EVENTS
        with self._watch(job_id) as channel:
            while not (self.closed or channel.ended):
                changed = channel.changed
                try:
                    batch = await self._next_batch(job_id, channel, after, limit)
                except UnreadableJob:
                    return
                limit = max(1, min(CATCH_UP_EVENTS, 2 * len(batch)))
                for entry in batch:
                    yield entry
                    if entry.last:
                        return
                    after = entry.seq
                if batch or await _is_set_within(changed, silence_s):
                    continue
                yield None
                if await self._is_over(job_id, after):
                    return

    @property
    def watchers(self) -> int:
        """How many clients are following a job now."""
        return sum(channel.watchers for channel in self._channels.values())

    def forget(self, job_id: str) -> None:
        """End all streams of a deleted or unreadable job."""
        if channel := self._channels.get(job_id):
            channel.end()

    def close(self) -> None:
        """End all streams."""
        self.closed = True
        for channel in self._channels.values():
            channel.wake()

    @contextmanager
    def _watch(self, job_id: str) -> Iterator[Channel]:
        channel = self._channels.setdefault(job_id, Channel())
        channel.watchers += 1
        try:
            yield channel
        finally:
            channel.watchers -= 1
            if not channel.watchers and self._channels.get(job_id) is channel:
                del self._channels[job_id]

    async def _next_batch(self, job_id: str, channel: Channel, after: int, limit: int) -> list[Entry]:
        """Return the next events from the cache, or up to `limit` from Redis; at most `BATCH_CHARS` of text."""
        entries = channel.after(after)
        if entries is None:
            entries = await self._catch_up(job_id, channel, after, limit)
        sizes = accumulate(len(entry.data) for entry in entries)
        return entries[: max(1, sum(size <= BATCH_CHARS for size in sizes))]

    async def _catch_up(self, job_id: str, channel: Channel, after: int, limit: int) -> list[Entry]:
        """Return up to `limit` of the next events from Redis. If there are none yet, the channel starts here.

        Tries again while Redis is unreachable but, unlike `retry_redis`, not after the process began to stop.
        """
        while True:
            try:
                entries = await self._store.entries(job_id, after, limit)
                newest = after if entries else min(after, await self._store.newest(job_id))
                break
            except (RedisError, OSError):
                if self.closed:
                    return []
                await asyncio.sleep(FIRST_DELAY_S)
        if not entries and channel.newest is None:
            channel.newest = newest  # less than `after` if the client names a position that does not exist yet
            self._wanted.set()
        return entries

    async def _is_over(self, job_id: str, after: int) -> bool:
        """Return whether no event can follow `after`. False while Redis is unreachable."""
        try:
            return await self._store.is_over(job_id, after)
        except UnreadableJob:
            return True
        except (RedisError, OSError):
            return False


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False
