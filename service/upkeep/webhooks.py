"""Webhooks: notifies clients of the end of jobs that have a `webhook_url`, with retries for a day.

`webhook_queue` keeps the pending webhooks in Redis, `webhook_sender` makes one request; this module decides which
deliveries run when.
"""

import asyncio
import logging
from collections import Counter
from contextlib import suppress
from functools import partial

from redis.exceptions import RedisError

from service.contract.store.background import repeat
from service.contract.store.store import Store
from service.metrics import Metrics
from service.upkeep.webhook_queue import TriesExhausted, WebhookQueue
from service.upkeep.webhook_sender import WebhookSender

CHECK_EVERY_S = 1.0
CHECK_AGAIN_S = 0.1
"""The shortest pause between checks, used when the end of a delivery makes room for another."""
PARALLEL = 256
PARALLEL_PER_HOST = 8
"""Limits deliveries per receiver, so that a receiver that does not answer delays only its own webhooks."""
HTTP_GONE = 410

log = logging.getLogger(__name__)


class Webhooks:
    """`run` is the background task that delivers due webhooks."""

    def __init__(self, store: Store, sender: WebhookSender, metrics: Metrics) -> None:
        self._store, self._sender, self._metrics = store, sender, metrics
        self._queue = WebhookQueue(store)
        self._receivers: dict[str, str] = {}
        """The receiving host of each due webhook that the latest check found."""
        self._deliveries: dict[str, asyncio.Task[None]] = {}
        self._deliveries_to: Counter[str] = Counter()
        self._room = asyncio.Event()
        self._room.set()

    async def run(self) -> None:
        """Deliver due webhooks until cancelled. Survives Redis outages."""
        try:
            await repeat(self._check, CHECK_AGAIN_S, "checking for due webhooks", log)
        finally:
            for task in list(self._deliveries.values()):
                task.cancel()
            await asyncio.gather(*self._deliveries.values(), return_exceptions=True)

    async def _check(self) -> None:
        """Wait until a delivery ends, or for `CHECK_EVERY_S`; then start the due deliveries."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CHECK_EVERY_S - CHECK_AGAIN_S):
                await self._room.wait()
        self._room.clear()
        await self._start_due()

    async def _start_due(self) -> None:
        """Start all deliveries that are due and for which there is room."""
        receivers: dict[str, str] = {}
        async for job_ids in self._queue.ended():
            page = await self._receivers_of(job_ids)
            receivers |= page
            for job_id, host in page.items():
                if self._has_room(job_id, host):
                    self._start(job_id, host)
        self._receivers = receivers

    async def _receivers_of(self, job_ids: list[str]) -> dict[str, str]:
        new = await self._queue.receivers([job_id for job_id in job_ids if job_id not in self._receivers])
        return {job_id: new[job_id] if job_id in new else self._receivers[job_id] for job_id in job_ids}

    def _has_room(self, job_id: str, host: str) -> bool:
        return (
            job_id not in self._deliveries
            and len(self._deliveries) < PARALLEL
            and self._deliveries_to[host] < PARALLEL_PER_HOST
        )

    def _start(self, job_id: str, host: str) -> None:
        self._deliveries_to[host] += 1
        task = self._deliveries[job_id] = asyncio.create_task(self._deliver(job_id))
        task.add_done_callback(partial(self._end, job_id, host))

    def _end(self, job_id: str, host: str, task: "asyncio.Task[None]") -> None:
        del self._deliveries[job_id]
        self._deliveries_to[host] -= 1
        if not self._deliveries_to[host]:
            del self._deliveries_to[host]
        self._room.set()

    async def _deliver(self, job_id: str) -> None:
        try:
            if number := await self._queue.claim(job_id):
                await self._try(job_id, number)
        except TriesExhausted:
            log.warning("%s: the webhook is given up, all tries failed", job_id)
            self._metrics.webhooks.labels("given_up").inc()
        except (RedisError, OSError) as error:
            log.warning("%s: webhook: %s", job_id, error)
        except Exception:
            log.exception("%s: webhook", job_id)

    async def _try(self, job_id: str, number: int) -> None:
        job = await self._store.job(job_id)
        if job is None or job.options.webhook_url is None:
            return
        status = await self._sender.send(job.options.webhook_url, job)
        log.info("%s: webhook, try %d: %s", job_id, number, status or "no response")
        delivered = status is not None and (200 <= status < 300 or status == HTTP_GONE)
        self._metrics.webhooks.labels("delivered" if delivered else "failed").inc()
        if delivered:
            await self._queue.remove(job_id)
