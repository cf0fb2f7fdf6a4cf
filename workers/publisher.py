"""Where the events of an attempt go: an `EventSink`.

`Publisher` appends to the job's stream in Redis, under the lease. `MemorySink` collects events in a list, so that the
pipeline runs without Redis.
"""

import asyncio
from datetime import UTC, datetime
from typing import Protocol

from service.contract.events import Event, StoredEvent
from service.contract.store.leases import CancelRequested, Lease
from service.contract.store.store import RetryingStore


class EventSink(Protocol):
    """Receives the events of one attempt in order."""

    async def append(self, event: Event) -> None:
        """Append `event` to the job. Raises Fenced, StreamTruncated or CancelRequested."""
        ...

    def submit(self, event: Event) -> None:
        """Append `event` in the background, before all events that follow. If that fails, a later `append` raises."""
        ...

    async def flush(self) -> None:
        """Wait until all events that were submitted are written or have failed."""
        ...

    async def check_lease(self) -> None:
        """Raise Fenced if the attempt has lost the job, CancelRequested if the client has cancelled it."""
        ...


class MemorySink:
    """Collects the events of one job in a list. There is only one attempt, so it cannot be fenced."""

    def __init__(self) -> None:
        self.stored: list[StoredEvent] = []

    async def append(self, event: Event) -> None:
        self.submit(event)

    def submit(self, event: Event) -> None:
        self.stored.append(StoredEvent(seq=len(self.stored) + 1, at=datetime.now(UTC), event=event))

    async def flush(self) -> None: ...

    async def check_lease(self) -> None: ...


class Publisher:
    """Appends to a job's stream in Redis, under the lease.

    `seq` is the position of the newest event in the stream. A write whose reply was lost is repeated with the
    same position, and the store ignores the repetition: a lost connection neither loses nor duplicates an event.
    `progress` is set when an event finishes a text.
    """

    def __init__(self, store: RetryingStore, lease: Lease, seq: int, progress: asyncio.Event | None = None) -> None:
        self._lease = lease
        self._store = store
        self._seq = seq
        self._progress = progress or asyncio.Event()
        self._order = asyncio.Lock()
        self._writes: set[asyncio.Task[None]] = set()
        self._failure: Exception | None = None

    async def append(self, event: Event) -> None:
        """Write `event`. Raises Fenced, StreamTruncated, or CancelRequested (after writing the event).

        If the caller is cancelled, the write still finishes: the next one needs to know its position.
        """
        await asyncio.shield(self._start(event, submitted=False))

    def submit(self, event: Event) -> None:
        """Write `event` in the background. If it fails, nothing is written until `append` has raised the failure."""
        self._start(event, submitted=True)

    async def flush(self) -> None:
        """Wait until all events that were submitted are written or have failed."""
        if self._writes:
            await asyncio.wait(set(self._writes))

    async def check_lease(self) -> None:
        """Renew the lease. Raises Fenced or CancelRequested."""
        await self._store.renew(self._lease)

    def _start(self, event: Event, *, submitted: bool) -> "asyncio.Task[None]":
        """Return a task that writes `event` after all events that were started before."""
        write = asyncio.create_task(self._append(event, submitted=submitted))
        self._writes.add(write)
        write.add_done_callback(self._discard)
        return write

    async def _append(self, event: Event, *, submitted: bool) -> None:
        async with self._order:
            try:
                self._raise_failure()
                await self._write(event)
            except CancelRequested:  # the event was written, and the next write raises it again
                raise
            except Exception as error:
                if submitted:
                    self._failure = error
                raise

    async def _write(self, event: Event) -> None:
        seq = self._seq + 1
        try:
            await self._store.append(self._lease, seq, event)
        except CancelRequested:
            self._seq = seq
            raise
        self._seq = seq
        if event.progress:
            self._progress.set()

    def _raise_failure(self) -> None:
        """Raise the failure of an event that was submitted before, once."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _discard(self, write: asyncio.Task[None]) -> None:
        self._writes.discard(write)
        if not write.cancelled():
            # Reading the exception stops asyncio's "never retrieved" warning if the caller was cancelled.
            # The next write or renewal raises it again.
            write.exception()
