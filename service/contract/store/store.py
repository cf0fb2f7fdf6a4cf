"""The store: all jobs and their events, as the gateway and the workers read and write them.

`Store` adds creating, cancelling, deleting and reading jobs to leases (`leases.py`), turns (`turns.py`) and worker
cards (`worker_cards.py`). `RetryingStore` is the workers' variant. The Redis keys are listed in `keys.py`.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import NamedTuple

from redis.asyncio import Redis

from service.contract.errors import UnreadableJob
from service.contract.events import Cancelled, Delta, Event, Queued, StoredEvent, fold
from service.contract.jobs import JobKind, JobState, JobStatus, Record
from service.contract.store import scripts
from service.contract.store.entries import Entry, entry_of, event_json, parsing
from service.contract.store.keys import (
    JOBS,
    LEASES,
    QUEUED,
    TEXTS,
    WEBHOOKS,
    clips_key,
    events_key,
    job_key,
    line_key,
    owned_key,
    stored_key,
    turns_key,
)
from service.contract.store.leases import Fault, Lease, LeaseStore, new_token
from service.contract.store.retry import retry_redis
from service.contract.store.scripts import JOB_OVERHEAD_BYTES
from service.contract.store.turns import Turns, queue_of
from service.contract.store.worker_cards import WorkerCardStore

EVENTS_PER_READ = 500
"""How many events are read from Redis at once."""
DELTA_TYPE = Delta.model_fields["type"].default


class KindAndStatus(NamedTuple):
    kind: JobKind
    status: JobStatus


class ListPosition(NamedTuple):
    """The position of a job in lists, which are ordered by creation time and then by id."""

    created_ms: int
    job_id: str


@dataclass
class History:
    """A job's record, as it is stored, and its events from some position on.

    `first` and `last` are the first and the last of these events, and `events` are those that are not deltas.
    """

    record: str
    first: Entry | None
    last: Entry | None = None
    events: list[Entry] = field(default_factory=list)

    def add(self, page: list[Entry]) -> None:
        """Add the next events."""
        self.events += [entry for entry in page if entry.type != DELTA_TYPE]
        self.last = page[-1] if page else self.last

    def after(self, seq: int) -> "History":
        """Return the part after position `seq`."""
        return replace(self, events=[entry for entry in self.events if entry.seq > seq])

    @property
    def chars(self) -> int:
        """Length of the JSON texts of the `events`."""
        return sum(len(entry.data) for entry in self.events)

    def parse(self) -> list[StoredEvent]:
        return [entry.parse() for entry in self.events]


class Store(LeaseStore, WorkerCardStore, Turns):
    """All reads and writes of jobs, events, leases, turns and worker cards. `redis` must decode responses to `str`.

    A method that parses a job's stored data raises UnreadableJob if it is malformed.
    """

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis)
        Turns.__init__(self, redis)
        self._create = redis.register_script(scripts.CREATE)
        self._delete = redis.register_script(scripts.DELETE)
        self._cancel = redis.register_script(scripts.CANCEL)

    async def create(self, record: Record, reservation: str = "") -> bool:
        """Write the record and its `queued` event; return False if another job has the id.

        `reservation` is the key of the request's idempotency entry; the script removes its expiry, so that it lives as
        long as the job.
        """
        event, text = Queued(), record.model_dump_json()
        queue, owner = queue_of(record), record.owner or ""
        deadline_s = record.options.deadline_s
        return bool(
            await self._create(
                keys=[
                    job_key(record.id),
                    events_key(record.id),
                    JOBS,
                    QUEUED,
                    reservation or job_key(record.id),
                    turns_key(queue),
                    line_key(queue, owner),
                    *([owned_key(owner)] if owner else ()),
                    *([clips_key(record.parent)] if record.parent else ()),
                    *([TEXTS] if record.kind is not JobKind.VIDEO else ()),
                    *([WEBHOOKS] if record.options.webhook_url else ()),
                ],
                args=[
                    record.id,
                    text,
                    record.kind.value,
                    event.type,
                    event_json(event),
                    owner,
                    "" if deadline_s is None else int(deadline_s * 1000),
                    queue,
                    len(text.encode()) + JOB_OVERHEAD_BYTES,
                    record.parent or "",
                ],
            )
        )

    async def cancel(self, job_id: str) -> JobStatus | None:
        """Cancel a job at once, or request it from the worker that is running the job.

        Returns the resulting status, None for an unknown job.
        """
        event = Cancelled()
        status = await self._cancel(
            keys=[job_key(job_id), events_key(job_id), LEASES, QUEUED], args=[job_id, event.type, event_json(event)]
        )
        with parsing(job_id):
            return JobStatus(status) if status else None

    async def delete(self, job_id: str) -> None:
        """Delete the record and the events; a worker that is still running the job is fenced."""
        values = await self.redis.hmget(job_key(job_id), ["owner", "queue", "parent"])
        owner, queue, parent = (value or "" for value in values)
        job = [job_key(job_id), events_key(job_id), clips_key(job_id)]
        shared = [stored_key(owner), turns_key(queue), line_key(queue, owner)]
        own = [*([owned_key(owner)] if owner else ()), *([clips_key(parent)] if parent else ())]
        await self._delete(keys=[*job, *shared, JOBS, LEASES, QUEUED, TEXTS, *own], args=[job_id, owner])

    async def page(
        self, before: ListPosition | None, limit: int, owner: str | None = None, parent: str | None = None
    ) -> list[ListPosition]:
        """Return the positions of up to `limit` jobs, newest first, starting after `before`.

        With `owner`, only jobs of that API key are listed; with `parent`, only the clips of that video job.
        """
        index = clips_key(parent) if parent else owned_key(owner) if owner else JOBS
        newest_ms, page = (before.created_ms if before else "+inf"), []
        for start in count(0, limit):
            rows = await self.redis.zrevrangebyscore(index, newest_ms, "-inf", start=start, num=limit, withscores=True)
            positions = [ListPosition(int(score), job_id) for job_id, score in rows]
            page += [position for position in positions if before is None or position < before]
            if len(page) >= limit or len(rows) < limit:
                break
        return page[:limit]

    async def records(self, job_ids: list[str]) -> list[tuple[Record, JobStatus]]:
        """Return each job's record and status without reading its events.

        Deleted jobs and jobs with an unreadable record are left out.
        """
        async with self.redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hmget(job_key(job_id), ["record", "status"])
            rows = await pipe.execute()
        readable = []
        for job_id, (record, status) in zip(job_ids, rows, strict=True):
            if record is not None and status is not None:
                with suppress(UnreadableJob), parsing(job_id):
                    readable.append((Record.model_validate_json(record), JobStatus(status)))
        return readable

    async def record(self, job_id: str) -> Record | None:
        """Return the job's record, None for an unknown job."""
        text = await self.redis.hget(job_key(job_id), "record")
        with parsing(job_id):
            return None if text is None else Record.model_validate_json(text)

    async def kind_and_status(self, job_id: str) -> KindAndStatus | None:
        """Return the job's kind and status, None for an unknown job."""
        kind, status = await self.redis.hmget(job_key(job_id), ["kind", "status"])
        with parsing(job_id):
            return KindAndStatus(JobKind(kind), JobStatus(status)) if kind else None

    async def owner(self, job_id: str) -> str | None:
        """Return the id of the API key that created the job, '' if there was no key; None for an unknown job."""
        owner: str | None = await self.redis.hget(job_key(job_id), "owner")
        return owner

    async def queue_position(self, job_id: str) -> int | None:
        """Return which of its API key's waiting jobs this one is, from 1; None if a worker has claimed it before."""
        queue, owner = await self.redis.hmget(job_key(job_id), "queue", "owner")
        rank = await self.redis.zrank(line_key(queue, owner), job_id) if queue is not None else None
        return None if rank is None else rank + 1

    async def is_over(self, job_id: str, after: int) -> bool:
        """Return whether no event can follow `after`: the job is deleted, or it has ended before."""
        known = await self.kind_and_status(job_id)
        return known is None or (known.status.ended and not await self.entries(job_id, after, 1))

    async def job(self, job_id: str) -> JobState | None:
        """Return the job's current state, None for an unknown job."""
        history = await self.history(job_id)
        if history is None:
            return None
        with parsing(job_id):
            return fold(Record.model_validate_json(history.record), history.parse())

    async def history(self, job_id: str, first: int = 1) -> History | None:
        """Return the job's record and its events from position `first` on, None for an unknown job."""
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.hget(job_key(job_id), "record")
            pipe.xrange(events_key(job_id), min=f"{first}-0", count=EVENTS_PER_READ)
            record, rows = await pipe.execute()
        if record is None:
            return None
        with parsing(job_id):
            page = [entry_of(*row) for row in rows]
        history = History(record, page[0] if page else None)
        history.add(page)
        while len(page) == EVENTS_PER_READ:
            page = await self.entries(job_id, page[-1].seq)
            history.add(page)
        return history

    async def events(self, job_id: str, after: int = 0, *, deltas: bool = True) -> AsyncIterator[StoredEvent]:
        """Yield the stored events at positions after `after`, in order, up to the newest."""
        while True:
            entries = await self.entries(job_id, after)
            for entry in entries:
                if deltas or entry.type != DELTA_TYPE:
                    yield entry.parse()
            if len(entries) < EVENTS_PER_READ:
                return
            after = entries[-1].seq

    async def entries(self, job_id: str, after: int = 0, limit: int = EVENTS_PER_READ) -> list[Entry]:
        """Return up to `limit` stored events, not parsed, at positions after `after`."""
        rows = await self.redis.xrange(events_key(job_id), min=f"({after}-0", count=limit)
        with parsing(job_id):
            return [entry_of(*row) for row in rows]

    async def newest(self, job_id: str) -> int:
        """Return the position of the newest event, 0 if the job has no events."""
        rows = await self.redis.xrevrange(events_key(job_id), count=1)
        with parsing(job_id):
            return entry_of(*rows[0]).seq if rows else 0


class RetryingStore(Store):
    """The workers' store: reading and writing a job waits until Redis is reachable and accepts writes.

    Worker cards are not retried, because the next card follows within seconds.
    """

    async def on_last_chance(self, job_id: str) -> bool:
        return await retry_redis(partial(super().on_last_chance, job_id))

    async def claim(self, job_id: str, token: str | None = None) -> Lease | None:
        return await retry_redis(partial(super().claim, job_id, token or new_token()))

    async def next_job(self, room: Mapping[str, Sequence[str]], woken: str = "") -> str | None:
        return await retry_redis(partial(super().next_job, room, woken))

    async def renew(self, lease: Lease) -> None:
        await retry_redis(partial(super().renew, lease))

    async def release(self, lease: Lease, fault: Fault | None = None) -> bool:
        return await retry_redis(partial(super().release, lease, fault))

    async def append(self, lease: Lease, seq: int, event: Event) -> None:
        await retry_redis(partial(super().append, lease, seq, event))

    async def record(self, job_id: str) -> Record | None:
        return await retry_redis(partial(super().record, job_id))

    async def kind_and_status(self, job_id: str) -> KindAndStatus | None:
        return await retry_redis(partial(super().kind_and_status, job_id))

    async def entries(self, job_id: str, after: int = 0, limit: int = EVENTS_PER_READ) -> list[Entry]:
        return await retry_redis(partial(super().entries, job_id, after, limit))
