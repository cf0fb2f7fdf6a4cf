"""Rate limits of API keys, counted in Redis for all gateways together.

Requests, created jobs and uploaded bytes are token buckets: a bucket starts full, so all of it may be spent at once,
and refills evenly over its period. A created job stays spent if it is cancelled or deleted. The bytes that a key's jobs
occupy in Redis are counted by the store's scripts. Requests without a key are not limited.
"""

import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.access.api_keys import ApiKey
from service.contract.errors import RateLimited, VideoTooLarge
from service.contract.jobs import Record
from service.contract.store.background import repeat
from service.contract.store.keys import JOB_PREFIX, spent_key, stored_key, streams_key, unfinished_key
from service.contract.store.scripts import CLOCK, UNFINISHED

MINUTE_MS = 60_000
HOUR_MS = 3600 * 1000
DAY_MS = 24 * HOUR_MS
BUSY_RETRY_AFTER_S = 5
"""Suggested wait if the limit depends on when another job or stream ends."""
RETRY_WHEN_STORED_S = 60
"""Suggested wait if the limit depends on when a job expires."""
UNCREATED_AFTER_MS = 60_000
"""A counted job that still has no record after this time was never created."""
RENEW_STREAMS_EVERY_S = 20.0
STREAM_TTL_MS = int(3 * RENEW_STREAMS_EVERY_S * 1000)

log = logging.getLogger(__name__)

_BUCKET = (
    CLOCK
    + """
local function full_after(key, cost, limit, period)
  return math.max(tonumber(redis.call('GET', key) or now), now) + cost * period / limit
end
local function set_full_at(key, full_at)
  if full_at > now then redis.call('SET', key, string.format('%.3f', full_at), 'PX', math.ceil(full_at - now))
  else redis.call('DEL', key) end
end
"""
)
"""Defines `full_after`: when a bucket is full again after spending `cost` of `limit` per period, and `set_full_at`."""

# KEYS spent; ARGV cost limit period_ms. Spends `cost` of `limit` per period; a negative cost is a refund. Returns 0, or
# the time in ms until the bucket holds enough; in that case nothing was spent.
_SPEND = (
    _BUCKET
    + """
local cost, period = tonumber(ARGV[1]), tonumber(ARGV[3])
local full_at = full_after(KEYS[1], cost, ARGV[2], period)
if cost > 0 and full_at - now > period then return math.ceil(full_at - now - period) end
set_full_at(KEYS[1], full_at)
return 0
"""
)

# KEYS unfinished spent stored; ARGV id job_key_prefix uncreated_after_ms hour_ms, and the limits or '': unfinished
# jobs, jobs per hour, stored bytes. If the key may have another job, returns {'ok', 0} and counts the job unless its id
# is ''. Otherwise returns the name of the limit and, if it is known, the time in ms after which to retry.
_COUNT_JOB = (
    _BUCKET
    + UNFINISHED
    + """
local id, unfinished_limit, hour_limit, bytes_limit = ARGV[1], tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
if id ~= '' and redis.call('ZSCORE', KEYS[1], id) then return {'ok', 0} end
if bytes_limit and tonumber(redis.call('GET', KEYS[3]) or 0) >= bytes_limit then return {'stored_bytes', 0} end
local full_at = hour_limit and full_after(KEYS[2], 1, hour_limit, tonumber(ARGV[4]))
if hour_limit and full_at - now > tonumber(ARGV[4]) then
  return {'jobs_per_hour', math.ceil(full_at - now - ARGV[4])}
end
local rows = unfinished_limit and redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES') or {}
local count = 0
for i = 1, #rows, 2 do
  local status = redis.call('HGET', ARGV[2] .. rows[i], 'status')
  if unfinished(status) or (not status and tonumber(rows[i + 1]) > now - ARGV[3]) then
    count = count + 1
  else
    redis.call('ZREM', KEYS[1], rows[i])
  end
end
if unfinished_limit and count >= unfinished_limit then return {'jobs', 0} end
if id ~= '' and unfinished_limit then redis.call('ZADD', KEYS[1], now, id) end
if id ~= '' and hour_limit then set_full_at(KEYS[2], full_at) end
return {'ok', 0}
"""
)

# KEYS streams; ARGV ttl_ms limit id. Returns 1 if the key may open another stream.
_COUNT_STREAM = (
    CLOCK
    + """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZSCORE', KEYS[1], ARGV[3]) then return 1 end
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
"""
)

# KEYS streams; ARGV ttl_ms id…
_RENEW_STREAMS = (
    CLOCK
    + """
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
"""
)


class RateLimits:
    """Counts what each key does. A method that counts raises RateLimited if the key has reached its limit."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis
        self._spend = redis.register_script(_SPEND)
        self._count_job = redis.register_script(_COUNT_JOB)
        self._count_stream = redis.register_script(_COUNT_STREAM)
        self._renew = redis.register_script(_RENEW_STREAMS)
        self._streams: dict[str, set[str]] = {}

    async def count_request(self, key: ApiKey) -> None:
        """Count a request. Raises RateLimited."""
        limit = key.limits.requests_per_minute
        if limit is None:
            return
        wait_ms = await self._spend(keys=[spent_key(key.id, "requests")], args=[1, limit, MINUTE_MS])
        if wait_ms:
            raise _rate_limited(f"This key is limited to {limit} requests a minute.", wait_ms)

    async def check_job(self, key: ApiKey | None) -> None:
        """Check whether the key may create a job, without counting one. Raises RateLimited."""
        await self.count_job(key, "")

    async def count_job(self, key: ApiKey | None, job_id: str) -> None:
        """Count a job that is about to be created. Counting it again has no effect. Raises RateLimited."""
        if key is None:
            return
        limits = key.limits
        counted = (limits.jobs, limits.jobs_per_hour, limits.stored_bytes)
        reached, wait_ms = await self._count_job(
            keys=[unfinished_key(key.id), spent_key(key.id, "jobs"), stored_key(key.id)],
            args=[job_id, JOB_PREFIX, UNCREATED_AFTER_MS, HOUR_MS, *(limit or "" for limit in counted)],
        )
        match reached:
            case "jobs":
                raise RateLimited(f"This key is limited to {limits.jobs} unfinished jobs.", BUSY_RETRY_AFTER_S)
            case "jobs_per_hour":
                raise _rate_limited(f"This key is limited to {limits.jobs_per_hour} new jobs an hour.", wait_ms)
            case "stored_bytes":
                detail = f"The jobs of this key occupy the {limits.stored_bytes} bytes that it is limited to."
                raise RateLimited(f"{detail} Delete jobs, or wait until old ones expire.", RETRY_WHEN_STORED_S)

    async def uncount_job(self, record: Record) -> None:
        """Stop counting a job that is being deleted."""
        if record.owner is not None:
            await self._redis.zrem(unfinished_key(record.owner), record.id)

    @asynccontextmanager
    async def count_stream(self, key: ApiKey | None) -> AsyncIterator[None]:
        """Count an event stream while the context is open. Raises RateLimited."""
        limit = key.limits.streams if key else None
        if key is None or limit is None:
            yield
            return
        entry, stream_id = streams_key(key.id), secrets.token_hex(8)
        if not await self._count_stream(keys=[entry], args=[STREAM_TTL_MS, limit, stream_id]):
            raise RateLimited(f"This key is limited to {limit} open event streams.", BUSY_RETRY_AFTER_S)
        open_streams = self._streams.setdefault(entry, set())
        open_streams.add(stream_id)
        try:
            yield
        finally:
            open_streams.discard(stream_id)
            with suppress(RedisError, OSError):  # the entry expires on its own
                await self._redis.zrem(entry, stream_id)

    async def renew_streams(self) -> None:
        """Renew the entries of this process's open streams at regular intervals. Runs until cancelled."""
        await repeat(self._renew_streams, RENEW_STREAMS_EVERY_S, "renewing the counts of open streams", log)

    async def _renew_streams(self) -> None:
        self._streams = {entry: ids for entry, ids in self._streams.items() if ids}
        for entry, ids in list(self._streams.items()):
            await self._renew(keys=[entry], args=[STREAM_TTL_MS, *ids])

    async def spend_bytes(self, key: ApiKey, limit: int, count: int) -> None:
        """Spend `count` bytes of the key's daily `limit`; a negative count is a refund. Raises RateLimited."""
        wait_ms = await self._spend(keys=[spent_key(key.id, "bytes")], args=[count, limit, DAY_MS])
        if wait_ms:
            raise _rate_limited(f"This key is limited to {limit} uploaded bytes a day.", wait_ms)


class ByteBudget:
    """The part of a key's daily byte limit that one upload uses.

    An upload of known length spends all its bytes before it is read; otherwise they are spent as they arrive.
    """

    def __init__(self, limits: RateLimits, key: ApiKey | None) -> None:
        self._limits, self._key = limits, key
        self._limit = key.limits.upload_bytes_per_day if key else None
        self._spent = 0

    async def reserve(self, total: int) -> None:
        """Make sure that `total` bytes of the upload are spent.

        Raises RateLimited, or VideoTooLarge if `total` exceeds the limit of a whole day.
        """
        if self._key is None or self._limit is None or total <= self._spent:
            return
        if total > self._limit:
            raise VideoTooLarge(f"This key is limited to {self._limit} uploaded bytes a day.")
        await self._limits.spend_bytes(self._key, self._limit, total - self._spent)
        self._spent = total

    async def refund(self, received: int) -> None:
        """Refund what was spent beyond the `received` bytes."""
        if self._key is None or self._limit is None or received >= self._spent:
            return
        with suppress(RedisError, OSError):  # the bucket refills on its own
            await self._limits.spend_bytes(self._key, self._limit, received - self._spent)
            self._spent = received


def _rate_limited(detail: str, wait_ms: int) -> RateLimited:
    return RateLimited(detail, -(-wait_ms // 1000))
