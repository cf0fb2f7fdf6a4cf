"""Following the events of many jobs for many clients over one Redis connection.

One task waits for new events of all watched jobs at once and keeps the latest few of each job. A client is only
a place in a stream: it takes what is newer from those few, or from Redis where it has fallen further behind, so that
a slow client costs no memory.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from itertools import accumulate

from redis.exceptions import RedisError

from service.contract.store.store import Entry, Store, entry_of, events_key

log = logging.getLogger(__name__)
KEPT = 256
COUNT = 200
CAUGHT_UP = 50
"""How many events a client that fell behind takes from Redis at once: at most, and no more than twice what it held."""
HELD_CHARS = 8192
"""How much text a client holds at most while it sends, but for a single event that is longer."""
BLOCK_MS = 100
"""How long one read waits; a job newly watched waits as long at most before it is read too."""
FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 2.0


class Channel:
    """The latest events of one watched job."""

    def __init__(self) -> None:
        self.kept: deque[Entry] = deque(maxlen=KEPT)
        self.newest: int | None = None
        """The place up to which the stream has been read; None before the first client knows one."""
        self.changed = asyncio.Event()
        self.watchers = 0
        self.gone = False

    def after(self, seq: int) -> list[Entry] | None:
        """Return the events after place `seq`, None where they are not all kept here."""
        if self.newest is None:
            return None
        if seq >= self.newest:
            return []
        if not self.kept or self.kept[0].seq > seq + 1:
            return None
        return [entry for entry in self.kept if entry.seq > seq]

    def add(self, entries: list[Entry]) -> None:
        self.kept.extend(entries)
        self.newest = entries[-1].seq
        self.wake()

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class Follower:
    """`run` is the one reading task; `follow` is what each client iterates."""

    def __init__(self, store: Store, reader: Store) -> None:
        self._store = store
        self._reader = reader
        self._channels: dict[str, Channel] = {}
        self._wanted = asyncio.Event()
        self.closed = False

    async def run(self) -> None:
        """Read for all watched jobs, for ever; outlives a Redis that goes away and comes back."""
        delay_s = FIRST_DELAY_S
        while True:
            try:
                await self._read()
                delay_s = FIRST_DELAY_S
            except (RedisError, OSError) as error:
                log.warning("events cannot be read, trying again in %.1f s: %s", delay_s, error)
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, LONGEST_DELAY_S)

    async def _read(self) -> None:
        places = {
            events_key(job_id): (channel, channel.newest)
            for job_id, channel in self._channels.items()
            if channel.newest is not None
        }
        if not places:
            self._wanted.clear()
            await self._wanted.wait()
            return
        after = {key: f"{newest}-0" for key, (_, newest) in places.items()}
        for key, rows in await self._reader.redis.xread(after, count=COUNT, block=BLOCK_MS) or ():
            places[key][0].add([entry_of(*row) for row in rows])

    async def follow(self, job_id: str, after: int, silence_s: float) -> AsyncGenerator[Entry | None]:
        """Yield the events after place `after` up to the last; None after each `silence_s` without any.

        Ends early where the job is deleted or the process stops.
        """
        count = CAUGHT_UP
        with self._watch(job_id) as channel:
            while not (self.closed or channel.gone):
                changed = channel.changed
                entries = channel.after(after)
                if entries is None:
                    entries = await self._catch_up(job_id, channel, after, count)
                entries = _portion(entries)
                count = max(1, min(CAUGHT_UP, 2 * len(entries)))
                for entry in entries:
                    yield entry
                    if entry.last:
                        return
                    after = entry.seq
                if entries:
                    continue
                try:
                    async with asyncio.timeout(silence_s):
                        await changed.wait()
                except TimeoutError:
                    yield None
                    if await self._is_over(job_id, after):
                        return

    @property
    def watchers(self) -> int:
        """How many clients follow a job now."""
        return sum(channel.watchers for channel in self._channels.values())

    def forget(self, job_id: str) -> None:
        """End all streams of a deleted job."""
        if channel := self._channels.get(job_id):
            channel.gone = True
            channel.wake()

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

    async def _catch_up(self, job_id: str, channel: Channel, after: int, count: int) -> list[Entry]:
        """Return up to `count` of the next events from Redis; where there are none, let the channel start here."""
        while True:
            try:
                entries = await self._store.entries(job_id, after, count)
                newest = after if entries else min(after, await self._store.newest(job_id))
                break
            except (RedisError, OSError):
                if self.closed:
                    return []
                await asyncio.sleep(FIRST_DELAY_S)
        if not entries and channel.newest is None:
            channel.newest = newest  # less than `after` where a client claims a place that is not there yet
            self._wanted.set()
        return entries

    async def _is_over(self, job_id: str, after: int) -> bool:
        """Whether nothing can come after place `after`: the job is deleted, or had ended there or before."""
        try:
            found = await self._store.kind_and_status(job_id)
            return found is None or (found[1].ended and not await self._store.entries(job_id, after, 1))
        except (RedisError, OSError):
            return False


def _portion(entries: list[Entry]) -> list[Entry]:
    """Return the first of `entries`, as many as one client may hold."""
    sizes = accumulate(len(entry.data) for entry in entries)
    return entries[: max(1, sum(size <= HELD_CHARS for size in sizes))]
