"""Webhooks: who asked for it is told of a job's end, once it knows of it, or for a day.

    sharecap:webhooks        zset  ids of jobs with a `webhook_url`, by when they are to be looked at next (ms)
    sharecap:webhooks:tries  hash  by job id: how often it was tried to deliver

A job is put among them in the one step that makes it (`scripts.CREATE`), so none is forgotten, whatever dies when.
Every gateway looks; one that finds a job ended claims the delivery by moving its time to the next try's. So a delivery
is made by one gateway at a time, and a claim that came to nothing, because its gateway was killed, is just a try that
failed. Requests follow Standard Webhooks: https://www.standardwebhooks.com
"""

import asyncio
import logging
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial

from pydantic import BaseModel
from redis.exceptions import RedisError
from standardwebhooks import Webhook
from yarl import URL

from service.contract.errors import UrlForbidden, UrlUnreachable
from service.contract.jobs import Job, Record
from service.contract.outbound import http as net
from service.contract.outbound.ssrf import checked
from service.contract.store.store import WEBHOOKS, Store, job_key
from service.metrics import Metrics
from service.settings import Settings

TRIES = f"{WEBHOOKS}:tries"
KEYS = [WEBHOOKS, TRIES]
LOOK_EVERY_S = 1.0
LOOK_AGAIN_S = 0.1
"""At the soonest, where a delivery's end makes room for another."""
UNFINISHED_AGAIN_S = 2.0
"""A job that has not ended is looked at this often."""
DELIVERY_S = 15.0
"""From the connection to the answer's head."""
AGAIN_AFTER_S = (30, 90, 480, 1200, 1800, 3600, 7200, 14_400, 28_800, 28_800, 60)
"""From each try to the next, and after a day from the last one to giving up. Each is longer than `DELIVERY_S`."""
AT_ONCE = 256
AT_ONCE_PER_HOST = 8
"""So that a receiver that does not answer holds up its own webhooks alone."""
LOOKED_AT = 500
GONE = 410

log = logging.getLogger(__name__)

_NOW = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
"""

# KEYS webhooks tries; ARGV job_key_prefix unfinished_again_ms skip limit. Looks at up to `limit` jobs that are due,
# after the first `skip`; returns how many these are, and which of them have ended: they stay due.
_LOOK = (
    _NOW
    + """
local due, ended = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', ARGV[3], ARGV[4]), {}
for _, id in ipairs(due) do
  local status = redis.call('HGET', ARGV[1] .. id, 'status')
  if not status then
    redis.call('ZREM', KEYS[1], id)
    redis.call('HDEL', KEYS[2], id)
  elseif status == 'queued' or status == 'running' then
    redis.call('ZADD', KEYS[1], now + ARGV[2], id)
  else
    ended[#ended + 1] = id
  end
end
return {#due, ended}
"""
)

# KEYS webhooks tries; ARGV id again_ms…  Returns the number of this try, from 1; 0 where another gateway has it, and
# -1 where all have been made: then it is forgotten.
_CLAIM = (
    _NOW
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


class Notice(BaseModel):
    """The body of a webhook. `type` is `job.completed`, `job.failed` or `job.cancelled`; `timestamp`: when it was."""

    type: str
    timestamp: datetime | None
    data: Job


class Webhooks:
    """`run` is the task that delivers; needs a `webhook_secret`."""

    def __init__(self, store: Store, settings: Settings, metrics: Metrics) -> None:
        assert settings.webhook_secret is not None
        self._store = store
        self._hosts = settings.allowed_hosts
        self._signers = [Webhook(secret) for secret in settings.webhook_secret.get_secret_value().split()]
        self._metrics = metrics
        self._look = store.redis.register_script(_LOOK)
        self._claim = store.redis.register_script(_CLAIM)
        self._host_of: dict[str, str] = {}
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._busy: Counter[str] = Counter()
        self._room = asyncio.Event()

    async def run(self) -> None:
        """Deliver what is due, for ever; outlives a Redis that goes away and comes back."""
        try:
            while True:
                try:
                    await self._begin_due()
                except (RedisError, OSError) as error:
                    log.warning("webhooks cannot be looked for: %s", error)
                except Exception:
                    log.exception("webhooks cannot be looked for")
                await asyncio.sleep(LOOK_AGAIN_S)
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY_S - LOOK_AGAIN_S):
                        await self._room.wait()
        finally:
            for task in list(self._under_way.values()):
                task.cancel()
            await asyncio.gather(*self._under_way.values(), return_exceptions=True)

    async def _begin_due(self) -> None:
        """Begin all deliveries that are due and that there is room for."""
        known: dict[str, str] = {}
        self._room.clear()
        due = LOOKED_AT
        while due == LOOKED_AT:
            ms = int(UNFINISHED_AGAIN_S * 1000)
            due, ended = await self._look(keys=KEYS, args=[job_key(""), ms, len(known), LOOKED_AT])
            hosts = await self._hosts_of(ended)
            known |= hosts
            for job_id, host in hosts.items():
                if (
                    job_id not in self._under_way
                    and len(self._under_way) < AT_ONCE
                    and self._busy[host] < AT_ONCE_PER_HOST
                ):
                    self._busy[host] += 1
                    task = self._under_way[job_id] = asyncio.create_task(self._deliver(job_id))
                    task.add_done_callback(partial(self._done, job_id, host))
        self._host_of = known

    async def _hosts_of(self, job_ids: list[str]) -> dict[str, str]:
        """Return where each job's webhook goes."""
        new = [job_id for job_id in job_ids if job_id not in self._host_of]
        async with self._store.redis.pipeline(transaction=False) as pipe:
            for job_id in new:
                pipe.hget(job_key(job_id), "record")
            found = dict(zip(new, map(_host, await pipe.execute()), strict=True))
        return {job_id: self._host_of.get(job_id) or found.get(job_id, "") for job_id in job_ids}

    def _done(self, job_id: str, host: str, task: "asyncio.Task[None]") -> None:
        del self._under_way[job_id]
        self._busy[host] -= 1
        if not self._busy[host]:
            del self._busy[host]
        self._room.set()

    async def _deliver(self, job_id: str) -> None:
        try:
            number = await self._claim(keys=KEYS, args=[job_id, *(seconds * 1000 for seconds in AGAIN_AFTER_S)])
            job = await self._store.job(job_id) if number > 0 else None
            if number < 0:
                log.warning("%s: the webhook was never taken", job_id)
                self._metrics.webhooks.labels("given_up").inc()
            elif job is not None and job.options.webhook_url is not None:
                status = await self._send(job.options.webhook_url, job)
                log.info("%s: webhook, try %d: %s", job_id, number, status or "no answer")
                taken = 200 <= status < 300 or status == GONE
                self._metrics.webhooks.labels("delivered" if taken else "failed").inc()
                if taken:
                    await self._forget(job_id)
        except (RedisError, OSError) as error:
            log.warning("%s: webhook: %s", job_id, error)
        except Exception:
            log.exception("%s: webhook", job_id)

    async def _send(self, address: str, job: Job) -> int:
        """Return the status that the receiver answers with, 0 where there is none."""
        notice = Notice(type=f"job.{job.status.value}", timestamp=job.finished_at, data=job)
        body, message, now = notice.model_dump_json(), f"msg_{job.id}", datetime.now(UTC)
        headers = {
            "Content-Type": "application/json",
            "webhook-id": message,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(signer.sign(message, now, body) for signer in self._signers),
        }
        try:
            url = checked(address, self._hosts)
            async with asyncio.timeout(DELIVERY_S):
                async with net.request("POST", url, self._hosts, data=body.encode(), headers=headers) as answer:
                    return answer.status
        except (UrlForbidden, UrlUnreachable, TimeoutError):
            return 0

    async def _forget(self, job_id: str) -> None:
        async with self._store.redis.pipeline(transaction=True) as pipe:
            pipe.zrem(WEBHOOKS, job_id)
            pipe.hdel(TRIES, job_id)
            await pipe.execute()


def _host(record: str | None) -> str:
    """Return where the webhook of a job goes; one that cannot be read must not hold up the others."""
    try:
        return URL(Record.model_validate_json(record).options.webhook_url or "").raw_host or "" if record else ""
    except ValueError:
        log.exception("a webhook's record cannot be read")
        return ""
