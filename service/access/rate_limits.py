"""How much one API key does at a time, counted in Redis for all gateways together.

    sharecap:spent:{key}:{what}   string  of `requests` and `bytes`: when all that was spent has come back (ms)
    sharecap:unfinished:{key}     zset    ids of the key's unfinished jobs, by the time they were taken on (ms)
    sharecap:streams:{key}        zset    its open event streams, by when each entry ends unless it is renewed (ms)

An allowance is a bucket: it is full at first, so all of it may be spent at once, and what was spent comes back evenly
over its period. A request made without a key has no limits.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.access.keys import Key
from service.contract.errors import RateLimited, VideoTooLarge
from service.contract.jobs import Record

MINUTE_MS = 60_000
DAY_MS = 24 * 3600 * 1000
TRY_AGAIN_S = 5
"""Where the wait depends on the end of another job or stream."""
UNMADE_AFTER_MS = 60_000
"""A job that was counted and is not there after this long has not come about."""
STREAM_TTL_MS = 60_000
RENEW_EVERY_S = 20.0

log = logging.getLogger(__name__)

_NOW = """
local t = redis.call('TIME')
local now = t[1] * 1000 + t[2] / 1000
"""

# KEYS spent; ARGV cost limit period_ms. A negative cost gives back. Returns 0, or for how long (ms) there is too little
# left; then nothing was spent.
_SPEND = (
    _NOW
    + """
local cost, period = tonumber(ARGV[1]), tonumber(ARGV[3])
local back = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now) + cost * period / ARGV[2]
if cost > 0 and back - now > period then return math.ceil(back - now - period) end
if back > now then redis.call('SET', KEYS[1], string.format('%.3f', back), 'PX', math.ceil(back - now))
else redis.call('DEL', KEYS[1]) end
return 0
"""
)

# KEYS unfinished; ARGV limit unmade_after_ms id ('' only asks). Returns 1 where there is room for the job.
_TAKE_ON = (
    _NOW
    + """
if ARGV[3] ~= '' and redis.call('ZSCORE', KEYS[1], ARGV[3]) then return 1 end
local rows = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
local unfinished = 0
for i = 1, #rows, 2 do
  local status = redis.call('HGET', 'sharecap:job:' .. rows[i], 'status')
  if status == 'queued' or status == 'running' or (not status and tonumber(rows[i + 1]) > now - ARGV[2]) then
    unfinished = unfinished + 1
  else
    redis.call('ZREM', KEYS[1], rows[i])
  end
end
if unfinished >= tonumber(ARGV[1]) then return 0 end
if ARGV[3] ~= '' then redis.call('ZADD', KEYS[1], now, ARGV[3]) end
return 1
"""
)

# KEYS streams; ARGV ttl_ms limit id. Returns 1 where there is room for the stream.
_OPEN = (
    _NOW
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
_RENEW = (
    _NOW
    + """
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
"""
)


class Limits:
    """What all routes ask before they do something that is limited. Every question may raise RateLimited."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis
        self._spend = redis.register_script(_SPEND)
        self._take_on = redis.register_script(_TAKE_ON)
        self._open = redis.register_script(_OPEN)
        self._renew = redis.register_script(_RENEW)
        self._streams: dict[str, set[str]] = {}

    async def request(self, key: Key | None) -> None:
        """Count a request."""
        if key is None or (limit := key.limits.requests_per_minute) is None:
            return
        wait_ms = await self._spend(keys=[f"sharecap:spent:{key.id}:requests"], args=[1, limit, MINUTE_MS])
        if wait_ms:
            raise _too_many(f"This key may make {limit} requests a minute.", wait_ms)

    async def job(self, key: Key | None, job_id: str = "") -> None:
        """Count a job until it has ended; without its id, only see whether there is room for one."""
        if key is None or (limit := key.limits.jobs) is None:
            return
        if not await self._take_on(keys=[f"sharecap:unfinished:{key.id}"], args=[limit, UNMADE_AFTER_MS, job_id]):
            raise RateLimited(f"This key may have {limit} unfinished jobs.", TRY_AGAIN_S)

    async def forget_job(self, record: Record) -> None:
        """Count a job no more that is being removed."""
        if record.owner is not None:
            await self._redis.zrem(f"sharecap:unfinished:{record.owner}", record.id)

    @asynccontextmanager
    async def stream(self, key: Key | None) -> AsyncIterator[None]:
        """Count an event stream for as long as it is open."""
        if key is None or (limit := key.limits.streams) is None:
            yield
            return
        entry, stream_id = f"sharecap:streams:{key.id}", secrets.token_hex(8)
        if not await self._open(keys=[entry], args=[STREAM_TTL_MS, limit, stream_id]):
            raise RateLimited(f"This key may have {limit} event streams open.", TRY_AGAIN_S)
        mine = self._streams.setdefault(entry, set())
        mine.add(stream_id)
        try:
            yield
        finally:
            mine.discard(stream_id)
            with suppress(RedisError, OSError):  # it ends by itself then
                await self._redis.zrem(entry, stream_id)

    async def keep_streams(self) -> None:
        """Renew the entries of this process's open streams, for ever."""
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            self._streams = {entry: ids for entry, ids in self._streams.items() if ids}
            for entry, ids in list(self._streams.items()):
                try:
                    await self._renew(keys=[entry], args=[STREAM_TTL_MS, *ids])
                except (RedisError, OSError) as error:
                    log.warning("open streams cannot be counted: %s", error)

    async def spend_bytes(self, key: Key, limit: int, count: int) -> None:
        """Take `count` bytes from the key's allowance of `limit` a day, or give them back where it is negative."""
        wait_ms = await self._spend(keys=[f"sharecap:spent:{key.id}:bytes"], args=[count, limit, DAY_MS])
        if wait_ms:
            raise _too_many(f"This key may upload {limit} bytes a day.", wait_ms)


class UploadedBytes:
    """What one upload takes of its key's bytes: all of it ahead where its length is told, else piece by piece."""

    def __init__(self, limits: Limits, key: Key | None) -> None:
        self._limits, self._key = limits, key
        self._spent = 0

    async def cover(self, count: int) -> None:
        """See that `count` bytes in all are paid for; raise RateLimited, or VideoTooLarge where no day has as many."""
        if self._key is None or (limit := self._key.limits.upload_bytes_per_day) is None or count <= self._spent:
            return
        if count > limit:
            raise VideoTooLarge(f"This key may upload {limit} bytes a day.")
        await self._limits.spend_bytes(self._key, limit, count - self._spent)
        self._spent = count

    async def settle(self, count: int) -> None:
        """Give back what was paid beyond the `count` bytes that came."""
        if self._key is None or (limit := self._key.limits.upload_bytes_per_day) is None or count >= self._spent:
            return
        with suppress(RedisError, OSError):  # it comes back with time
            await self._limits.spend_bytes(self._key, limit, count - self._spent)
            self._spent = count


def _too_many(detail: str, wait_ms: int) -> RateLimited:
    return RateLimited(detail, -(-wait_ms // 1000))
