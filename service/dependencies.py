"""The objects that a gateway process holds while it runs, and the dependencies through which routes access them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, cast

from fastapi import Depends, Request
from redis.asyncio import Redis

from service.access.api_keys import ApiKeyStore
from service.access.authentication import Authenticator
from service.access.job_tokens import JobTokenStore
from service.access.origins import OriginCheck
from service.access.rate_limits import RateLimits
from service.contract.places import Places
from service.contract.sandbox.probe import LIBRARIES
from service.contract.sandbox.subprocesses import ChildStarter
from service.contract.storage.backends import open_storage
from service.contract.storage.interface import Storage
from service.contract.store.connection import connect
from service.contract.store.reaper import Reaper
from service.contract.store.store import Store
from service.contract.store.wakeups import Wakeups
from service.intake.idempotency import Idempotency
from service.intake.memory import MemoryGuard
from service.job_states import JobStates
from service.metrics import Metrics
from service.settings import Settings
from service.streaming.follower import Follower
from service.upkeep.retention import Retention

GATEWAY_CONNECTIONS = 64
CONCURRENT_PROBES = 4
"""Uploads probed at the same time. Each probe runs in its own process; a malicious video can use up to 2 GiB there."""
PROBES_PER_KEY = 3
"""How many of them one API key may have, so that one is left for the next key."""

BackgroundTask = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Gateway:
    settings: Settings
    store: Store
    storage: Storage
    wakeups: Wakeups
    states: JobStates
    follower: Follower
    metrics: Metrics
    authenticator: Authenticator
    tokens: JobTokenStore
    rate_limits: RateLimits
    idempotency: Idempotency
    retention: Retention
    memory: MemoryGuard
    probes: Places
    starter: ChildStarter


@asynccontextmanager
async def open_gateway(settings: Settings, metrics: Metrics) -> AsyncIterator[Gateway]:
    """Create the data directory, the Redis clients and the background tasks. Redis need not be reachable yet."""
    async with AsyncExitStack() as stack:
        store = Store(await stack.enter_async_context(_redis(settings, GATEWAY_CONNECTIONS)))
        reader = Store(await stack.enter_async_context(_redis(settings, 1)))
        starter = await stack.enter_async_context(ChildStarter(LIBRARIES))
        gateway = _build_gateway(settings, metrics, store, reader, starter)
        stack.callback(gateway.wakeups.close)
        async with _running(_background_tasks(gateway)):
            try:
                yield gateway
            finally:
                gateway.follower.close()


def _build_gateway(settings: Settings, metrics: Metrics, store: Store, reader: Store, starter: ChildStarter) -> Gateway:
    storage = open_storage(settings)
    storage.prepare()
    limits, idempotency, keys = RateLimits(store.redis), Idempotency(store.redis), ApiKeyStore(store.redis)
    origins = OriginCheck(settings.trusted_hosts, settings.allowed_origins | settings.cors_origins)
    tokens = JobTokenStore(store.redis)
    return Gateway(
        settings=settings,
        store=store,
        storage=storage,
        wakeups=Wakeups(settings.redis_url),
        states=JobStates(store),
        follower=Follower(store, reader),
        metrics=metrics,
        authenticator=Authenticator(keys, tokens, limits, origins, always_closed=settings.exposed),
        tokens=tokens,
        rate_limits=limits,
        idempotency=idempotency,
        retention=Retention(
            store, idempotency, limits, storage, settings.retention_s, text_retention_s=settings.text_retention_s
        ),
        memory=MemoryGuard(store.redis),
        probes=Places(CONCURRENT_PROBES, PROBES_PER_KEY),
        starter=starter,
    )


def _background_tasks(gateway: Gateway) -> list[BackgroundTask]:
    """Return the functions that run in the background, at most as long as the gateway does."""
    settings, store = gateway.settings, gateway.store
    reaper = Reaper(store, gateway.wakeups, gateway.storage)
    tasks = [
        gateway.follower.run,
        reaper.run,
        gateway.rate_limits.renew_streams,
        gateway.retention.run,
        gateway.memory.warn_if_ineffective,
    ]
    if settings.webhook_secret is not None:
        # imported here, because importing aiohttp takes 0.2 s of CPU time
        from service.upkeep.webhook_sender import WebhookSender  # noqa: PLC0415
        from service.upkeep.webhooks import Webhooks  # noqa: PLC0415

        sender = WebhookSender(settings.webhook_secret, settings.allowed_hosts)
        tasks.append(Webhooks(store, sender, gateway.metrics).run)
    return tasks


@asynccontextmanager
async def _running(functions: list[BackgroundTask]) -> AsyncIterator[None]:
    """Run the functions as tasks, and cancel them at the end."""
    tasks = [asyncio.create_task(function()) for function in functions]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _redis(settings: Settings, connections: int) -> Redis:
    patience_s = settings.redis_patience_s
    return connect(settings.redis_url, connections, patience_s, socket_connect_timeout=2, socket_timeout=2)


def _gateway_of(request: Request) -> Gateway:
    return cast(Gateway, request.app.state.gateway)


GatewayDep = Annotated[Gateway, Depends(_gateway_of)]


async def _response_stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


ResponseStack = Annotated[AsyncExitStack, Depends(_response_stack)]
"""Context managers entered here are closed once the response has been sent or the client has disconnected."""
