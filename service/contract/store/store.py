"""Every Redis key, and all reads and writes of jobs, events and leases.

    sharecap:job:{id}      hash    record (JSON), kind, status, owner, cancel, epoch, holder, until, strikes,
                                   deadline
    sharecap:events:{id}   stream  ids 1-0, 2-0, …; fields type, data (JSON), at (ms)
    sharecap:jobs          zset    all job ids by creation time (ms)
    sharecap:jobs:{owner}  zset    those of one API key
    sharecap:leases        zset    running job ids by the end of their lease (ms)
    sharecap:queued        zset    queued job ids by the last time they were waked (ms)
    sharecap:webhooks      zset    see `service/upkeep/webhooks.py`
    sharecap:workers       set     ids of workers that lived lately
    sharecap:worker:{id}   string  a live worker's card (JSON), with a time to live

A worker owns a job by its *lease*: `claim` writes the lease's token into the record, and every later write carries
it. A write without the token there, or after the lease's end, is refused (`Fenced`); one with a place already taken is
dropped (the reply to the first was lost). So a worker that froze and comes back can neither repeat nor overwrite.
Time is the server's clock alone.

A *strike* is an attempt that ended badly: its lease ran out, or its decoder or engine died. `MAX_STRIKES` of them in a
row, with no text finished in between, end the job.
"""

import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import Any

from pydantic import BaseModel
from redis.asyncio import Redis

from service.contract.errors import AttemptsExhausted, DeadlineExceeded
from service.contract.events import EVENT, LAST_TYPES, Cancelled, Event, Failed, Queued, StoredEvent, fold
from service.contract.jobs import Job, JobKind, JobStatus, JobSummary, Record, summary
from service.contract.store import scripts

LEASE_S = 10.0
RENEW_EVERY_S = 3.0
MAX_STRIKES = 3
REWAKE_AFTER_S = 2.0
"""A queued job whose wake-up nobody has taken is looked at this often."""
WORKER_CARD_TTL_S = 15
PAGE = 500

JOBS = "sharecap:jobs"
LEASES = "sharecap:leases"
QUEUED = "sharecap:queued"
WEBHOOKS = "sharecap:webhooks"
WORKERS = "sharecap:workers"


def job_key(job_id: str) -> str:
    return f"sharecap:job:{job_id}"


def owned_key(owner: str) -> str:
    return f"sharecap:jobs:{owner}"


def events_key(job_id: str) -> str:
    return f"sharecap:events:{job_id}"


def worker_key(worker_id: str) -> str:
    return f"sharecap:worker:{worker_id}"


class Fenced(Exception):
    """The job is another worker's now, or has ended: drop it in silence."""


class StreamTruncated(Exception):
    """The stream is shorter than this worker has written it: the server has lost its last writes."""


class CancelRequested(Exception):
    """The client asked for the job to be cancelled."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored event as it lies in the stream: `data` is JSON text, to be passed on byte for byte."""

    seq: int
    type: str
    data: str
    at_ms: int

    @property
    def last(self) -> bool:
        """Whether nothing can follow."""
        return self.type in LAST_TYPES

    def parse(self) -> StoredEvent:
        event = EVENT.validate_python({"type": self.type, **json.loads(self.data)})
        return StoredEvent(seq=self.seq, at=datetime.fromtimestamp(self.at_ms / 1000, UTC), event=event)


@dataclass(frozen=True)
class Lease:
    """The right to write to one job: the `epoch`-th since it was made."""

    job_id: str
    epoch: int
    token: str


@dataclass(frozen=True)
class Reaped:
    """A job that a reaper has ended, or has to wake."""

    job_id: str
    status: JobStatus
    kind: JobKind
    epoch: int


def new_token() -> str:
    """Return what tells one claim from all others."""
    return secrets.token_hex(8)


class WorkerCard(BaseModel):
    """What a live worker says of itself every few seconds."""

    id: str
    model: str
    slots: int
    running: int = 0


class Store:
    """All reads and writes of jobs and events. `redis` must decode responses to `str`."""

    def __init__(self, redis: Redis) -> None:
        self.redis: Any = redis  # redis-py's types do not know that answers are decoded
        self._create = redis.register_script(scripts.CREATE)
        self._claim = redis.register_script(scripts.CLAIM)
        self._renew = redis.register_script(scripts.RENEW)
        self._release = redis.register_script(scripts.RELEASE)
        self._append = redis.register_script(scripts.APPEND)
        self._cancel = redis.register_script(scripts.CANCEL)
        self._due = redis.register_script(scripts.DUE)
        self._reap = redis.register_script(scripts.REAP)

    # -- the gateway's side

    async def create(self, record: Record, reservation: str = "") -> bool:
        """Write the record and its `queued` event; return False where another job has the id.

        `reservation` is a key of Redis that expires, and from now on does so no more.
        """
        event = Queued()
        return bool(
            await self._create(
                keys=[
                    job_key(record.id),
                    events_key(record.id),
                    JOBS,
                    QUEUED,
                    reservation or job_key(record.id),
                    *([owned_key(record.owner)] if record.owner else ()),
                    *([WEBHOOKS] if record.options.webhook_url else ()),
                ],
                args=[
                    record.id,
                    record.model_dump_json(),
                    record.kind.value,
                    event.type,
                    _dump(event),
                    record.owner or "",
                    "" if record.options.deadline_s is None else int(record.options.deadline_s * 1000),
                ],
            )
        )

    async def cancel(self, job_id: str) -> JobStatus | None:
        """Cancel a job at once, or ask the worker that is at it to; return the status now, None if unknown."""
        event = Cancelled()
        status = await self._cancel(
            keys=[job_key(job_id), events_key(job_id), LEASES, QUEUED], args=[job_id, event.type, _dump(event)]
        )
        return JobStatus(status) if status else None

    async def delete(self, job_id: str) -> None:
        """Forget the record and the events; a worker still at it is fenced."""
        owner = await self.redis.hget(job_key(job_id), "owner")
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.delete(job_key(job_id), events_key(job_id))
            for index in (JOBS, LEASES, QUEUED, *([owned_key(owner)] if owner else ())):
                pipe.zrem(index, job_id)
            await pipe.execute()

    async def page(self, before: tuple[int, str] | None, limit: int, owner: str | None = None) -> list[tuple[int, str]]:
        """Return up to `limit` pairs of creation time (ms) and job id, newest first, from after `before` on.

        With `owner`, only of that API key's jobs.
        """
        index = owned_key(owner) if owner else JOBS
        top, found = (before[0] if before else "+inf"), []
        for start in count(0, limit):
            rows = await self.redis.zrevrangebyscore(index, top, "-inf", start=start, num=limit, withscores=True)
            places = [(int(score), job_id) for job_id, score in rows]
            found += [place for place in places if before is None or place < before]
            if len(found) >= limit or len(rows) < limit:
                break
        return found[:limit]

    async def summaries(self, job_ids: list[str]) -> list[JobSummary]:
        """Return what is known of each job without reading its events; deleted ones are left out."""
        async with self.redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hmget(job_key(job_id), ["record", "status"])
            rows = await pipe.execute()
        return [summary(Record.model_validate_json(text), JobStatus(status)) for text, status in rows if text]

    # -- both sides

    async def record(self, job_id: str) -> Record | None:
        text = await self.redis.hget(job_key(job_id), "record")
        return Record.model_validate_json(text) if text else None

    async def kind_and_status(self, job_id: str) -> tuple[JobKind, JobStatus] | None:
        kind, status = await self.redis.hmget(job_key(job_id), ["kind", "status"])
        return (JobKind(kind), JobStatus(status)) if kind else None

    async def owner_and_status(self, job_id: str) -> tuple[str | None, JobStatus] | None:
        """Return the public part of the API key that made the job (none: made without one) and the job's status."""
        owner, status = await self.redis.hmget(job_key(job_id), ["owner", "status"])
        return (owner or None, JobStatus(status)) if status else None

    async def job(self, job_id: str) -> Job | None:
        """Return the job as it stands now, None if unknown."""
        record = await self.record(job_id)
        if record is None:
            return None
        return fold(record, [stored async for stored in self.events(job_id, deltas=False)])

    async def events(self, job_id: str, after: int = 0, *, deltas: bool = True) -> AsyncIterator[StoredEvent]:
        """Yield the stored events with a place greater than `after`, in order, and stop at the newest."""
        while True:
            entries = await self.entries(job_id, after)
            for entry in entries:
                if deltas or entry.type != "delta":
                    yield entry.parse()
            if len(entries) < PAGE:
                return
            after = entries[-1].seq

    async def entries(self, job_id: str, after: int = 0, limit: int = PAGE) -> list[Entry]:
        """Return up to `limit` stored events, unparsed, with a place greater than `after`."""
        rows = await self.redis.xrange(events_key(job_id), min=f"({after}-0", count=limit)
        return [entry_of(*row) for row in rows]

    async def newest(self, job_id: str) -> int:
        """Return the place of the newest event, 0 where there is none."""
        rows = await self.redis.xrevrange(events_key(job_id), count=1)
        return entry_of(*rows[0]).seq if rows else 0

    # -- the worker's side

    async def strikes(self, job_id: str) -> int:
        """Return how many attempts in a row have ended badly."""
        return int(await self.redis.hget(job_key(job_id), "strikes") or 0)

    async def claim(self, job_id: str, token: str | None = None) -> Lease | None:
        """Take a job that nobody holds; return None where it is held, ended or unknown.

        A claim repeated with the same `token` returns the same lease.
        """
        token = token or new_token()
        epoch = await self._claim(keys=[job_key(job_id), LEASES, QUEUED], args=[job_id, token, int(LEASE_S * 1000)])
        return Lease(job_id, int(epoch), token) if epoch else None

    async def renew(self, lease: Lease) -> None:
        """Hold the job for another `LEASE_S`; raise Fenced or CancelRequested."""
        answer = await self._renew(
            keys=[job_key(lease.job_id), LEASES], args=[lease.job_id, lease.token, int(LEASE_S * 1000)]
        )
        if answer == 0:
            raise Fenced(lease.job_id)
        if answer == 2:
            raise CancelRequested(lease.job_id)

    async def release(self, lease: Lease, *, strike: bool = False) -> bool:
        """Give an unfinished job back, to be claimed by whoever is waked next.

        Returns False where the strike would be the job's last: it is still held, and has to be ended.
        """
        answer = await self._release(
            keys=[job_key(lease.job_id), LEASES, QUEUED],
            args=[lease.job_id, lease.token, "1" if strike else "", MAX_STRIKES],
        )
        return bool(answer != 2)

    async def append(self, lease: Lease, seq: int, event: Event) -> None:
        """Write `event` at place `seq`; a repetition of a place already written is a no-op.

        Raises Fenced where the lease is lost or the job has ended, StreamTruncated where places before `seq` are
        missing,
        CancelRequested where the event was written and the client has asked to cancel.
        """
        status = event.status
        answer = await self._append(
            keys=[job_key(lease.job_id), events_key(lease.job_id), LEASES, QUEUED],
            args=[
                lease.job_id,
                lease.token,
                seq,
                event.type,
                _dump(event),
                status.value if status else "",
                "1" if status and status.ended else "",
                "1" if event.progress else "",
            ],
        )
        if answer == "FENCED":
            raise Fenced(lease.job_id)
        if answer == "GAP":
            raise StreamTruncated(lease.job_id)
        if answer == "CANCEL" and not (status and status.ended):
            raise CancelRequested(lease.job_id)

    async def show_worker(self, card: WorkerCard) -> None:
        """Say that a worker lives, for the next `WORKER_CARD_TTL_S`."""
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.set(worker_key(card.id), card.model_dump_json(), ex=WORKER_CARD_TTL_S)
            pipe.sadd(WORKERS, card.id)
            await pipe.execute()

    async def hide_worker(self, worker_id: str) -> None:
        await self.redis.delete(worker_key(worker_id))

    async def workers(self) -> list[WorkerCard]:
        """Return the live workers whose model is loaded."""
        ids = sorted(await self.redis.smembers(WORKERS))
        cards = await self.redis.mget([worker_key(worker_id) for worker_id in ids]) if ids else []
        if gone := [worker_id for worker_id, card in zip(ids, cards, strict=True) if not card]:
            await self.redis.srem(WORKERS, *gone)  # one that lives is there again with its next card
        return [WorkerCard.model_validate_json(card) for card in cards if card]

    # -- the reapers'

    async def due(self, held: int, queued: int) -> list[str]:
        """Return ids of jobs whose lease has run out, and of queued ones not waked lately: so many of each at most."""
        return list(await self._due(keys=[LEASES, QUEUED], args=[int(REWAKE_AFTER_S * 1000), held, queued]))

    async def reap(self, job_id: str) -> Reaped | None:
        """Take the job from a worker that has gone, and end one that is late.

        Returns it where it has ended by that, or is to be waked now.
        """
        failed = Failed.of(AttemptsExhausted(f"{MAX_STRIKES} attempts in a row ended before they finished a caption."))
        cancelled = Cancelled()
        found = await self._reap(
            keys=[job_key(job_id), events_key(job_id), LEASES, QUEUED],
            args=[
                job_id,
                int(REWAKE_AFTER_S * 1000),
                MAX_STRIKES,
                *(failed.type, _dump(failed)),
                *(cancelled.type, _dump(cancelled)),
                _dump(Failed.of(DeadlineExceeded("Nobody was at work on the job when its deadline came."))),
            ],
        )
        return Reaped(job_id, JobStatus(found[0]), JobKind(found[1]), int(found[2])) if found else None


def entry_of(entry_id: str, fields: dict[str, str]) -> Entry:
    """Return one stream entry as Redis gives it."""
    return Entry(int(entry_id.split("-", maxsplit=1)[0]), fields["type"], fields["data"], int(fields["at"]))


def _dump(event: Event) -> str:
    return json.dumps(event.data(), ensure_ascii=False, separators=(",", ":"))
