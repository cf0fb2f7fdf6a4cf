"""Every Redis key, and the Lua scripts that write them.

    sharecap:job:{id}      hash    record (JSON), kind, status, cancel, epoch, until
    sharecap:events:{id}   stream  ids 1-0, 2-0, …; fields type, data (JSON), at (ms)
    sharecap:jobs          zset    all job ids by creation time (ms)
    sharecap:leases        zset    running job ids by the end of their lease (ms)
    sharecap:queued        zset    queued job ids by the last time they were waked (ms)
    sharecap:worker:{id}   string  a live worker's card (JSON), with a time to live

A worker owns a job by its *epoch*: `claim` raises it, and every later write carries it. A write with an old
epoch is refused (`Fenced`), one with a place already taken is dropped (the reply to the first was lost), so a
worker that froze and comes back can neither repeat nor overwrite. Time is the server's clock alone.
"""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel
from redis.asyncio import Redis

from service.contract.events import EVENT, Event, Queued, StoredEvent
from service.contract.jobs import JobKind, JobStatus, Record

LEASE_S = 10.0
RENEW_EVERY_S = 3.0
WORKER_CARD_TTL_S = 15
PAGE = 500

JOBS = "sharecap:jobs"
LEASES = "sharecap:leases"
QUEUED = "sharecap:queued"


def job_key(job_id: str) -> str:
    return f"sharecap:job:{job_id}"


def events_key(job_id: str) -> str:
    return f"sharecap:events:{job_id}"


def worker_key(worker_id: str) -> str:
    return f"sharecap:worker:{worker_id}"


_NOW = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
"""

# KEYS job events jobs queued; ARGV id record kind type data
_CREATE = (
    _NOW
    + """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], 'record', ARGV[2], 'kind', ARGV[3], 'status', 'queued', 'epoch', 0)
redis.call('XADD', KEYS[2], '1-0', 'type', ARGV[4], 'data', ARGV[5], 'at', now)
redis.call('ZADD', KEYS[3], now, ARGV[1])
redis.call('ZADD', KEYS[4], now, ARGV[1])
return 1
"""
)

# KEYS job leases queued; ARGV id lease_ms. Returns the new epoch, or 0 where there is nothing to claim.
_CLAIM = (
    _NOW
    + """
local status, till = unpack(redis.call('HMGET', KEYS[1], 'status', 'until'))
if status ~= 'queued' and status ~= 'running' then return 0 end
if till and tonumber(till) > now then return 0 end
local epoch = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
redis.call('HSET', KEYS[1], 'until', now + ARGV[2])
redis.call('ZADD', KEYS[2], now + ARGV[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
return epoch
"""
)

# KEYS job leases; ARGV id epoch lease_ms. Returns 1 kept, 2 kept and cancel asked for, 0 lost.
_RENEW = (
    _NOW
    + """
local epoch, till, cancel = unpack(redis.call('HMGET', KEYS[1], 'epoch', 'until', 'cancel'))
if epoch ~= ARGV[2] or not till then return 0 end
redis.call('HSET', KEYS[1], 'until', now + ARGV[3])
redis.call('ZADD', KEYS[2], now + ARGV[3], ARGV[1])
return cancel and 2 or 1
"""
)

# KEYS job leases queued; ARGV id epoch. Gives an unfinished job back at once; its wake-up is the caller's.
_RELEASE = (
    _NOW
    + """
local epoch, status = unpack(redis.call('HMGET', KEYS[1], 'epoch', 'status'))
if epoch ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], 'until')
redis.call('ZREM', KEYS[2], ARGV[1])
if status == 'queued' or status == 'running' then redis.call('ZADD', KEYS[3], now, ARGV[1]) end
return 1
"""
)

# KEYS job events leases queued; ARGV id epoch seq type data status ended('1' or '').
# Returns OK, CANCEL (written, and cancel was asked for), DUP, GAP or FENCED.
_APPEND = (
    _NOW
    + """
local epoch, status, cancel = unpack(redis.call('HMGET', KEYS[1], 'epoch', 'status', 'cancel'))
if epoch ~= ARGV[2] then return 'FENCED' end
local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
local seq = tonumber(string.match(newest[1][1], '^(%d+)'))
if tonumber(ARGV[3]) <= seq then return 'DUP' end
if status ~= 'queued' and status ~= 'running' then return 'FENCED' end
if tonumber(ARGV[3]) ~= seq + 1 then return 'GAP' end
redis.call('XADD', KEYS[2], ARGV[3] .. '-0', 'type', ARGV[4], 'data', ARGV[5], 'at', now)
if ARGV[6] ~= '' then redis.call('HSET', KEYS[1], 'status', ARGV[6]) end
if ARGV[7] ~= '' then
  redis.call('HDEL', KEYS[1], 'until')
  redis.call('ZREM', KEYS[3], ARGV[1])
  redis.call('ZREM', KEYS[4], ARGV[1])
end
return cancel and 'CANCEL' or 'OK'
"""
)

# KEYS job events queued; ARGV id type data. A queued job ends at once; a running one is asked to.
# Returns the status after it, or nothing for an unknown job.
_CANCEL = (
    _NOW
    + """
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return nil end
if status == 'running' then redis.call('HSET', KEYS[1], 'cancel', 1) end
if status ~= 'queued' then return status end
local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
local seq = tonumber(string.match(newest[1][1], '^(%d+)'))
redis.call('XADD', KEYS[2], (seq + 1) .. '-0', 'type', ARGV[2], 'data', ARGV[3], 'at', now)
redis.call('HSET', KEYS[1], 'status', 'cancelled')
redis.call('HINCRBY', KEYS[1], 'epoch', 1)
redis.call('ZREM', KEYS[3], ARGV[1])
return 'cancelled'
"""
)


class Fenced(Exception):
    """The job is another worker's now, or has ended: drop it in silence."""


class CancelRequested(Exception):
    """The client asked for the job to be cancelled."""


@dataclass(frozen=True)
class Lease:
    """The right to write to one job."""

    job_id: str
    epoch: int


class WorkerCard(BaseModel):
    """What a live worker says of itself every few seconds."""

    id: str
    model: str
    slots: int
    running: int = 0


class Store:
    """All reads and writes of jobs and events. `redis` must decode responses to `str`."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self._create = redis.register_script(_CREATE)
        self._claim = redis.register_script(_CLAIM)
        self._renew = redis.register_script(_RENEW)
        self._release = redis.register_script(_RELEASE)
        self._append = redis.register_script(_APPEND)
        self._cancel = redis.register_script(_CANCEL)

    # -- the gateway's side

    async def create(self, record: Record) -> bool:
        """Write the record and its `queued` event; return False where the id is taken already."""
        event = Queued()
        return bool(
            await self._create(
                keys=[job_key(record.id), events_key(record.id), JOBS, QUEUED],
                args=[record.id, record.model_dump_json(), record.kind.value, event.type, _dump(event)],
            )
        )

    async def cancel(self, job_id: str) -> JobStatus | None:
        """Cancel a queued job at once, ask a running one's worker to; return the status now, None if unknown."""
        event = EVENT.validate_python({"type": "cancelled"})
        status = await self._cancel(
            keys=[job_key(job_id), events_key(job_id), QUEUED], args=[job_id, event.type, _dump(event)]
        )
        return JobStatus(status) if status else None

    async def delete(self, job_id: str) -> None:
        """Forget the record and the events; a worker still at it is fenced."""
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.delete(job_key(job_id), events_key(job_id))
            for index in (JOBS, LEASES, QUEUED):
                pipe.zrem(index, job_id)
            await pipe.execute()

    async def newest(self, before_ms: int | None, limit: int) -> list[tuple[str, int]]:
        """Return up to `limit` pairs of job id and creation time (ms), newest first, older than `before_ms`."""
        top = f"({before_ms}" if before_ms is not None else "+inf"
        found = await self.redis.zrevrangebyscore(JOBS, top, "-inf", start=0, num=limit, withscores=True)
        return [(job_id, int(score)) for job_id, score in found]

    # -- both sides

    async def record(self, job_id: str) -> Record | None:
        text = await self.redis.hget(job_key(job_id), "record")  # type: ignore[misc]
        return Record.model_validate_json(text) if text else None

    async def kind_and_status(self, job_id: str) -> tuple[JobKind, JobStatus] | None:
        kind, status = await self.redis.hmget(job_key(job_id), ["kind", "status"])  # type: ignore[misc]
        return (JobKind(kind), JobStatus(status)) if kind else None

    async def events(self, job_id: str, after: int = 0) -> AsyncIterator[StoredEvent]:
        """Yield the stored events with a place greater than `after`, in order, and stop at the newest."""
        while True:
            page = await self.redis.xrange(events_key(job_id), min=f"({after}-0", count=PAGE)
            for entry_id, fields in page:
                stored = parse_entry(entry_id, fields)
                yield stored
                after = stored.seq
            if len(page) < PAGE:
                return

    # -- the worker's side

    async def claim(self, job_id: str) -> Lease | None:
        """Take a job that nobody holds; return None where it is held, ended or unknown."""
        epoch = await self._claim(keys=[job_key(job_id), LEASES, QUEUED], args=[job_id, int(LEASE_S * 1000)])
        return Lease(job_id, int(epoch)) if epoch else None

    async def renew(self, lease: Lease) -> None:
        """Hold the job for another `LEASE_S`; raise Fenced or CancelRequested."""
        answer = await self._renew(
            keys=[job_key(lease.job_id), LEASES], args=[lease.job_id, lease.epoch, int(LEASE_S * 1000)]
        )
        if answer == 0:
            raise Fenced(lease.job_id)
        if answer == 2:
            raise CancelRequested(lease.job_id)

    async def release(self, lease: Lease) -> None:
        """Give an unfinished job back, to be claimed by whoever is waked next."""
        await self._release(keys=[job_key(lease.job_id), LEASES, QUEUED], args=[lease.job_id, lease.epoch])

    async def append(self, lease: Lease, seq: int, event: Event) -> None:
        """Write `event` at place `seq`; a repetition of a place already written is a no-op.

        Raises Fenced where the lease is lost or the job has ended, CancelRequested where the event was written and
        the client has asked to cancel.
        """
        status = event.status
        answer = await self._append(
            keys=[job_key(lease.job_id), events_key(lease.job_id), LEASES, QUEUED],
            args=[
                lease.job_id,
                lease.epoch,
                seq,
                event.type,
                _dump(event),
                status.value if status else "",
                "1" if status and status.ended else "",
            ],
        )
        if answer == "FENCED":
            raise Fenced(lease.job_id)
        assert answer != "GAP", f"{lease.job_id}: event {seq} would leave a gap"
        if answer == "CANCEL" and not (status and status.ended):
            raise CancelRequested(lease.job_id)

    async def show_worker(self, card: WorkerCard) -> None:
        """Say that a worker lives, for the next `WORKER_CARD_TTL_S`."""
        await self.redis.set(worker_key(card.id), card.model_dump_json(), ex=WORKER_CARD_TTL_S)

    async def hide_worker(self, worker_id: str) -> None:
        await self.redis.delete(worker_key(worker_id))

    async def workers(self) -> list[WorkerCard]:
        """Return the live workers whose model is loaded."""
        keys = [key async for key in self.redis.scan_iter(match=worker_key("*"), count=1000)]
        cards = await self.redis.mget(keys) if keys else []
        return [WorkerCard.model_validate_json(card) for card in cards if card]


def parse_entry(entry_id: str, fields: dict[str, Any]) -> StoredEvent:
    """Return the event of one stream entry as Redis gives it."""
    return StoredEvent(
        seq=int(entry_id.split("-", maxsplit=1)[0]),
        at=datetime.fromtimestamp(int(fields["at"]) / 1000, UTC),
        event=EVENT.validate_python({"type": fields["type"], **json.loads(fields["data"])}),
    )


def _dump(event: Event) -> str:
    return json.dumps(event.data(), ensure_ascii=False, separators=(",", ":"))
