"""Leases: how a worker owns a job, and every write that needs a valid lease.

A worker claims a job and receives a *lease*: the store writes the lease's token into the job's record, and every later
write carries the token. Once the lease has expired, a reaper takes the job, and the store refuses writes with the old
token (`Fenced`). A write to a position that already holds an event is ignored: it repeats a write whose reply was lost.
So a worker that froze and comes back can neither repeat nor overwrite anything.

Only the Redis server's clock counts. After an outage of the server, no reaper takes a job for `LEASE_S`, so that the
holders can renew their leases first (`scripts.py`).

A *strike* is an attempt that ended badly: its lease expired, or its decoder or engine died. `MAX_STRIKES` strikes in a
row, with no finished text in between, end the job. A *stall* is an attempt whose engine hung. The job is less likely to
be the cause, so it takes `MAX_STALLS` of them.
"""

import asyncio
import secrets
from dataclasses import dataclass
from enum import Enum
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from service.contract.errors import AttemptsExhausted, DeadlineExceeded
from service.contract.events import Cancelled, Event, Failed
from service.contract.jobs import JobStatus
from service.contract.store import scripts
from service.contract.store.entries import event_json
from service.contract.store.keys import ALIVE, LEASES, QUEUED, events_key, job_key

LEASE_S = 10.0
RENEW_EVERY_S = 0.3 * LEASE_S
"""Three renewals fit into a lease, so that two may fail."""
MAX_STRIKES = 3
MAX_STALLS = 5
OUTAGE_S = 4.0
"""If no reaper has reached the Redis server for this long, the server was unreachable, and renewals may have failed."""
REWAKE_AFTER_S = 2.0
"""A queued job is woken again if no worker has claimed it this long after its latest wake-up."""


class Fenced(Exception):
    """The worker has lost its lease, or the job has ended: the worker must stop without writing anything."""


class StreamTruncated(Exception):
    """The stream is shorter than this worker left it: the Redis server has lost its last writes."""


class CancelRequested(Exception):
    """The client has requested the job's cancellation."""


class Fault(Enum):
    """How an attempt ended badly. `field` of the job's record counts such attempts; `limit` in a row end the job."""

    STRIKE = "strikes", MAX_STRIKES
    STALL = "stalls", MAX_STALLS

    def __init__(self, field: str, limit: int) -> None:
        self.field = field
        self.limit = limit


@dataclass(frozen=True)
class Lease:
    """The right to write to one job; `epoch` counts the job's leases from 1."""

    job_id: str
    epoch: int
    token: str


@dataclass(frozen=True)
class Reaped:
    """A job that a reaper has ended, or must wake."""

    job_id: str
    status: JobStatus
    queue: str
    epoch: int


def new_token() -> str:
    """Return a random token that identifies one claim."""
    return secrets.token_hex(8)


class GroupedScript:
    """A Lua script whose concurrent calls share round trips: a call waits while others are being sent.

    The calls of one round trip also share one sync of the server's append-only file. Each call receives its own reply,
    or its own error.
    """

    def __init__(self, redis: Any, text: str) -> None:
        self._redis = redis
        self._script = redis.register_script(text)
        self._waiting: list[_Call] = []
        self._sending: asyncio.Task[None] | None = None

    async def __call__(self, keys: list[str], args: list[Any]) -> Any:
        """Return the script's reply."""
        call = _Call(keys, args, asyncio.get_running_loop().create_future())
        self._waiting.append(call)
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send())
        return await call.reply

    async def _send(self) -> None:
        while calls := self._waiting:
            self._waiting = []
            for call, reply in zip(calls, await self._replies(calls), strict=True):
                if call.reply.done():  # the caller was cancelled
                    continue
                if isinstance(reply, BaseException):
                    call.reply.set_exception(reply)
                else:
                    call.reply.set_result(reply)

    async def _replies(self, calls: list["_Call"]) -> list[Any]:
        """Return the reply to each call, or the exception that it failed with."""
        try:
            if len(calls) > 1:
                async with self._redis.pipeline(transaction=False) as pipe:
                    for call in calls:
                        pipe.evalsha(self._script.sha, len(call.keys), *call.keys, *call.args)
                    replies: list[Any] = await pipe.execute(raise_on_error=False)
                if not any(isinstance(reply, NoScriptError) for reply in replies):
                    return replies
            return [await self._script(keys=call.keys, args=call.args) for call in calls]
        except Exception as error:
            return [error] * len(calls)


@dataclass(frozen=True)
class _Call:
    keys: list[str]
    args: list[Any]
    reply: "asyncio.Future[Any]"


class LeaseStore:
    """The part of the store that workers and reapers write through. `redis` must decode responses to `str`."""

    def __init__(self, redis: Redis) -> None:
        self.redis: Any = redis  # redis-py's types do not express decoded responses
        self._claim = redis.register_script(scripts.CLAIM)
        self._renew = redis.register_script(scripts.RENEW)
        self._release = redis.register_script(scripts.RELEASE)
        self._append = GroupedScript(self.redis, scripts.APPEND)
        self._due = redis.register_script(scripts.DUE)
        self._reap = redis.register_script(scripts.REAP)

    async def on_last_chance(self, job_id: str) -> bool:
        """Return whether one more strike or one more stall would end the job."""
        counts = await self.redis.hmget(job_key(job_id), [fault.field for fault in Fault])
        return any(int(count or 0) >= fault.limit - 1 for fault, count in zip(Fault, counts, strict=True))

    async def claim(self, job_id: str, token: str | None = None) -> Lease | None:
        """Lease a job; return None if it is already leased, ended or unknown.

        A claim repeated with the same `token` returns the same lease.
        """
        token = token or new_token()
        epoch = await self._claim(keys=[job_key(job_id), LEASES, QUEUED, ALIVE], args=[job_id, token, _lease_ms()])
        return Lease(job_id, int(epoch), token) if epoch else None

    async def renew(self, lease: Lease) -> None:
        """Extend the lease to `LEASE_S` from now. Raises Fenced or CancelRequested."""
        reply = await self._renew(keys=[job_key(lease.job_id), LEASES], args=[lease.job_id, lease.token, _lease_ms()])
        if reply == 0:
            raise Fenced(lease.job_id)
        if reply == 2:
            raise CancelRequested(lease.job_id)

    async def release(self, lease: Lease, fault: Fault | None = None) -> bool:
        """Return an unfinished job to the queue and count `fault`; the caller wakes another worker.

        Returns False if this fault would be the job's last: the lease is kept, and the caller must end the job.
        """
        reply = await self._release(
            keys=[job_key(lease.job_id), LEASES, QUEUED],
            args=[lease.job_id, lease.token, *((fault.field, fault.limit) if fault else ("", 0))],
        )
        return bool(reply != 2)

    async def append(self, lease: Lease, seq: int, event: Event) -> None:
        """Write `event` at position `seq` of the job's stream; do nothing if the position already holds an event.

        Raises Fenced if the lease is lost or the job has ended, StreamTruncated if events before `seq` are missing, and
        CancelRequested if the event was written and the client has requested cancellation.
        """
        status = event.status
        reply = await self._append(
            keys=[job_key(lease.job_id), events_key(lease.job_id), LEASES, QUEUED],
            args=[
                lease.job_id,
                lease.token,
                seq,
                event.type,
                event_json(event),
                status.value if status else "",
                "1" if status and status.ended else "",
                "1" if event.progress else "",
            ],
        )
        if reply == "FENCED":
            raise Fenced(lease.job_id)
        if reply == "GAP":
            raise StreamTruncated(lease.job_id)
        if reply == "CANCEL" and not (status and status.ended):
            raise CancelRequested(lease.job_id)

    async def due(self, max_leased: int, max_queued: int) -> list[str]:
        """Return ids of jobs to reap: up to `max_leased` with an expired lease, up to `max_queued` without a wake-up.

        A queued job counts as without a wake-up if its latest one is `REWAKE_AFTER_S` ago. No lease counts as expired
        during the first `LEASE_S` after an outage.
        """
        args = [int(REWAKE_AFTER_S * 1000), max_leased, max_queued, int(OUTAGE_S * 1000), _lease_ms()]
        return list(await self._due(keys=[LEASES, QUEUED, ALIVE], args=args))

    async def postpone(self, job_id: str, delay_s: float) -> None:
        """Leave the job out of `due` for `delay_s` seconds."""
        seconds, micros = await self.redis.time()
        for index in (LEASES, QUEUED):
            await self.redis.zadd(index, {job_id: int(1000 * (seconds + delay_s) + micros / 1000)}, xx=True)

    async def reap(self, job_id: str) -> Reaped | None:
        """Take the job from a worker whose lease has expired, and end a job that is past its deadline.

        Returns the job if this ended it or if it needs a wake-up now.
        """
        failed = Failed.of(AttemptsExhausted(f"{MAX_STRIKES} attempts in a row ended before they finished a caption."))
        cancelled = Cancelled()
        late = Failed.of(DeadlineExceeded("No worker was processing the job when its deadline passed."))
        reply = await self._reap(
            keys=[job_key(job_id), events_key(job_id), LEASES, QUEUED, ALIVE],
            args=[
                job_id,
                int(REWAKE_AFTER_S * 1000),
                MAX_STRIKES,
                *(failed.type, event_json(failed)),
                *(cancelled.type, event_json(cancelled)),
                event_json(late),
                int(OUTAGE_S * 1000),
                _lease_ms(),
            ],
        )
        if reply is None:
            return None
        status, queue, epoch = reply
        return Reaped(job_id, JobStatus(status), queue, int(epoch))


def _lease_ms() -> int:
    return int(LEASE_S * 1000)
