"""What the gateway's process holds while it lives, and how routes get at it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request
from redis.asyncio import Redis

from service.access.authentication import Authenticator
from service.access.keys import Keys
from service.access.rate_limits import Limits
from service.contract.store.connection import connect
from service.contract.store.reaper import Reaper
from service.contract.store.store import Store
from service.contract.store.wakeups import Wakeups
from service.intake import uploads
from service.intake.idempotency import Idempotency
from service.metrics import Metrics
from service.settings import Settings
from service.streaming.follower import Follower
from service.upkeep.retention import Retention

CONNECTIONS = 64
PROBES = 4
"""How many uploads are looked into at once: each takes a process, and up to 2 GiB where it is malicious."""


@dataclass(frozen=True)
class Gateway:
    settings: Settings
    store: Store
    wakeups: Wakeups
    follower: Follower
    metrics: Metrics
    door: Authenticator
    limits: Limits
    idempotency: Idempotency
    retention: Retention
    probing: asyncio.Semaphore


@asynccontextmanager
async def open_gateway(settings: Settings, metrics: Metrics) -> AsyncIterator[Gateway]:
    """Make the data directory and the Redis clients; Redis itself need not be there yet."""
    uploads.prepare(settings.data_dir)
    async with AsyncExitStack() as stack:
        store = Store(await stack.enter_async_context(_redis(settings, CONNECTIONS)))
        reader = Store(await stack.enter_async_context(_redis(settings, 1)))
        wakeups = Wakeups(settings.redis_url)
        stack.callback(wakeups.close)
        follower = Follower(store, reader)
        reaper = Reaper(store, wakeups, settings.data_dir)
        limits, idempotency = Limits(store.redis), Idempotency(store.redis)
        door = Authenticator(Keys(store.redis), limits, always_closed=settings.exposed, local=settings.local)
        retention = Retention(store, idempotency, limits, settings.data_dir, settings.retention_s)
        chores = [follower.run, reaper.run, limits.keep_streams, retention.run]
        if settings.webhook_secret is not None:
            from service.upkeep.webhooks import Webhooks  # noqa: PLC0415 (aiohttp takes 0.2 s of processor time)

            chores.append(Webhooks(store, settings, metrics).run)
        tasks = [asyncio.create_task(chore()) for chore in chores]
        try:
            yield Gateway(
                settings,
                store,
                wakeups,
                follower,
                metrics,
                door,
                limits,
                idempotency,
                retention,
                asyncio.Semaphore(PROBES),
            )
        finally:
            follower.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _redis(settings: Settings, connections: int) -> Redis:
    patience_s = settings.redis_patience_s
    return connect(settings.redis_url, connections, patience_s, socket_connect_timeout=2, socket_timeout=2)


def _of_request(request: Request) -> Gateway:
    return cast(Gateway, request.app.state.gateway)


GatewayDep = Annotated[Gateway, Depends(_of_request)]


async def _closing() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


ResponseStack = Annotated[AsyncExitStack, Depends(_closing)]
"""What is entered here is left when the answer has been sent, or its client is gone."""
