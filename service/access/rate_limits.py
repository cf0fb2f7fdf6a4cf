"""Rate limits of API keys, counted in Redis for all gateways together.

Requests and uploaded bytes are token buckets: a bucket starts full, so all of it may be spent at once, and refills
evenly over its period. Requests without a key are not limited.
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
from service.contract.store.keys import JOB_PREFIX, spent_key, streams_key, unfinished_key
from service.contract.store.scripts import CLOCK, UNFINISHED

MINUTE_MS = 60_000
DAY_MS = 24 * 3600 * 1000
RETRY_AFTER_S = 5
"""Suggested wait if the limit depends on when another job or stream ends."""
UNCREATED_AFTER_MS = 60_000
"""A counted job that still has no record after this time was never created."""
RENEW_EVERY_S = 20.0
STREAM_TTL_MS = int(3 * RENEW_EVERY_S * 1000)

log = logging.getLogger(__name__)

# KEYS spent; ARGV cost limit period_ms. Spends `cost` of `limit` per period; a negative cost is a refund. Returns 0, or
# the time in ms until the bucket holds enough; in that case nothing was spent.
_SPEND = (
    CLOCK
    + """
local cost, period = tonumber(ARGV[1]), tonumber(ARGV[3])
local full_at = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now) + cost * period / ARGV[2]
if cost > 0 and full_at - now > period then return math.ceil(full_at - now - period) end
if full_at > now then redis.call('SET', KEYS[1], string.format('%.3f', full_at), 'PX', math.ceil(full_at - now))
else redis.call('DEL', KEYS[1]) end
return 0
"""
)

# KEYS unfinished; ARGV limit uncreated_after_ms id job_key_prefix. Returns 1 if the key may have another job, and
# counts the job unless its id is ''.
_COUNT_JOB = (
    CLOCK
    + UNFINISHED
    + """
if ARGV[3] ~= '' and redis.call('ZSCORE', KEYS[1], ARGV[3]) then return 1 end
local rows = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
local count = 0
for i = 1, #rows, 2 do
  local status = redis.call('HGET', ARGV[4] .. rows[i], 'status')
  if unfinished(status) or (not status and tonumber(rows[i + 1]) > now - ARGV[2]) then
    count = count + 1
  else
    redis.call('ZREM', KEYS[1], rows[i])
  end
end
if count >= tonumber(ARGV[1]) then return 0 end
if ARGV[3] ~= '' then redis.call('ZADD', KEYS[1], now, ARGV[3]) end
return 1
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
        """Check whether the key may have another unfinished job, without counting one. Raises RateLimited."""
        await self.count_job(key, "")

    async def count_job(self, key: ApiKey | None, job_id: str) -> None:
        """Count a job until it ends. Counting the same job again has no effect. Raises RateLimited."""
        limit = key.limits.jobs if key else None
        if key is None or limit is None:
            return
        args: list[str | int] = [limit, UNCREATED_AFTER_MS, job_id, JOB_PREFIX]
        if not await self._count_job(keys=[unfinished_key(key.id)], args=args):
            raise RateLimited(f"This key is limited to {limit} unfinished jobs.", RETRY_AFTER_S)

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
            raise RateLimited(f"This key is limited to {limit} open event streams.", RETRY_AFTER_S)
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
        await repeat(self._renew_streams, RENEW_EVERY_S, "renewing the counts of open streams", log)

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
    """The bytes that one upload spends of its key's daily limit.

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
