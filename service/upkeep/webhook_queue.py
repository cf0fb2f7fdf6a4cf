"""The queue of webhooks in Redis: jobs with a `webhook_url`, ordered by the time of their next check.

The atomic step that creates a job also puts it into this queue (`scripts.CREATE`), so no webhook is lost if a process
dies. Every gateway checks the queue. A gateway that finds an ended job claims the delivery by moving the job to the
time of the next try; one gateway at a time therefore delivers a webhook, and if that gateway is killed, the claim
counts as a failed try.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import suppress

from yarl import URL

from service.contract.errors import UnreadableJob
from service.contract.jobs import Record
from service.contract.store.entries import parsing
from service.contract.store.keys import JOB_PREFIX, WEBHOOK_TRIES, WEBHOOKS, job_key
from service.contract.store.scripts import CLOCK, UNFINISHED
from service.contract.store.store import Store

UNFINISHED_AGAIN_S = 2.0
"""How often a job that has not ended is checked."""
PAUSES_S = (30, 90, 480, 1200, 1800, 3600, 7200, 14_400, 28_800, 28_800, 60)
"""Seconds to wait after each try. 60 s after the last try, a day after the first, the delivery is given up."""
JOBS_PER_CHECK = 500
"""How many due jobs one script call checks."""

log = logging.getLogger(__name__)
_KEYS = [WEBHOOKS, WEBHOOK_TRIES]

# KEYS webhooks tries; ARGV job_prefix unfinished_again_ms skip limit. Checks up to `limit` due jobs after the first
# `skip`. Deleted jobs leave the queue, unfinished ones are checked again later. Returns the number of jobs checked and
# the ids of those that have ended, which stay due.
_CHECK = (
    CLOCK
    + UNFINISHED
    + """
local due, ended = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', ARGV[3], ARGV[4]), {}
for _, id in ipairs(due) do
  local status = redis.call('HGET', ARGV[1] .. id, 'status')
  if not status then
    redis.call('ZREM', KEYS[1], id)
    redis.call('HDEL', KEYS[2], id)
  elseif unfinished(status) then
    redis.call('ZADD', KEYS[1], now + ARGV[2], id)
  else
    ended[#ended + 1] = id
  end
end
return {#due, ended}
"""
)

# KEYS webhooks tries; ARGV id pause_ms…  Returns the number of this try, from 1; 0 if another gateway has claimed
# the delivery; -1 after the last try, which removes the job from the queue.
_CLAIM = (
    CLOCK
    + """
local due = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not due or tonumber(due) > now then return 0 end
local number = redis.call('HINCRBY', KEYS[2], ARGV[1], 1)
if number >= #ARGV then
  redis.call('ZREM', KEYS[1], ARGV[1])
  redis.call('HDEL', KEYS[2], ARGV[1])
  return -1
end
redis.call('ZADD', KEYS[1], now + ARGV[1 + number], ARGV[1])
return number
"""
)


class TriesExhausted(Exception):
    """All tries to deliver this webhook have failed."""


class WebhookQueue:
    """Finds, claims and removes webhooks that are due."""

    def __init__(self, store: Store) -> None:
        self._redis = store.redis
        self._check = store.redis.register_script(_CHECK)
        self._claim = store.redis.register_script(_CLAIM)

    async def ended(self) -> AsyncIterator[list[str]]:
        """Yield the ids of due jobs that have ended, page by page, longest due first."""
        skip, checked = 0, JOBS_PER_CHECK
        while checked == JOBS_PER_CHECK:
            args = [JOB_PREFIX, int(UNFINISHED_AGAIN_S * 1000), skip, JOBS_PER_CHECK]
            checked, job_ids = await self._check(keys=_KEYS, args=args)
            skip += len(job_ids)
            yield job_ids

    async def claim(self, job_id: str) -> int | None:
        """Claim the next try and return its number, from 1; None if another gateway has it. Raises TriesExhausted."""
        pauses_ms = [seconds * 1000 for seconds in PAUSES_S]
        number = int(await self._claim(keys=_KEYS, args=[job_id, *pauses_ms]))
        if number < 0:
            raise TriesExhausted
        return number or None

    async def remove(self, job_id: str) -> None:
        """Remove a job whose webhook needs no further try."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.zrem(WEBHOOKS, job_id)
            pipe.hdel(WEBHOOK_TRIES, job_id)
            await pipe.execute()

    async def receivers(self, job_ids: list[str]) -> dict[str, str]:
        """Return the host that receives each job's webhook."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hget(job_key(job_id), "record")
            records = await pipe.execute()
        return {job_id: _receiver(job_id, record) for job_id, record in zip(job_ids, records, strict=True)}


def _receiver(job_id: str, record: str | None) -> str:
    """Return the host of the record's `webhook_url`, or '' if it is unreadable: it must not block other webhooks."""
    with suppress(UnreadableJob), parsing(job_id):
        url = Record.model_validate_json(record).options.webhook_url if record else None
        return URL(url or "").raw_host or ""
    return ""
