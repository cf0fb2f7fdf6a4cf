"""Liveness, readiness and metrics."""

import asyncio
from collections import Counter

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from redis.exceptions import RedisError

from service.contract.errors import StorageFull
from service.contract.store.worker_cards import WorkerCard
from service.dependencies import Gateway, GatewayDep
from service.problems import responses

router = APIRouter(tags=["health"])
NO_KEY_NEEDED: dict[str, list[str]] = {"security": []}
"""OpenAPI marker of routes that need no API key."""
CHECK_TIMEOUT_S = 2.0


class Check(BaseModel):
    ok: bool
    detail: str


class Readiness(BaseModel):
    """`demonstration` says what the model knows, if it is only a demonstration."""

    ready: bool
    checks: dict[str, Check]
    demonstration: str | None = None


@router.get("/healthz", openapi_extra=NO_KEY_NEEDED)
async def alive() -> dict[str, str]:
    """Liveness: the process is running."""
    return {"status": "ok"}


@router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}}, openapi_extra=NO_KEY_NEEDED)
async def ready(gateway: GatewayDep) -> Response:
    """Readiness: Redis is reachable, the disk has free space, and at least one worker has its model loaded."""
    cards = await _worker_cards(gateway)
    checks = {"redis": await _redis(gateway), "disk": _disk(gateway), "workers": _workers(cards)}
    demonstration = next((card.demonstration for card in cards if card.demonstration), None)
    is_ready = all(check.ok for check in checks.values())
    readiness = Readiness(ready=is_ready, checks=checks, demonstration=demonstration)
    return Response(readiness.model_dump_json(), 200 if readiness.ready else 503, media_type="application/json")


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **responses()})
async def metrics(gateway: GatewayDep) -> Response:
    """Metrics in the Prometheus text format."""
    text = await gateway.metrics.text(gateway.store, gateway.follower)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


async def _redis(gateway: Gateway) -> Check:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            await gateway.store.redis.ping()
    except (RedisError, OSError):
        return Check(ok=False, detail="unreachable")
    return Check(ok=True, detail="reachable")


def _disk(gateway: Gateway) -> Check:
    try:
        gateway.storage.check_free_space()
    except (StorageFull, OSError):
        return Check(ok=False, detail="not enough free space for uploads")
    return Check(ok=True, detail="enough free space for uploads")


async def _worker_cards(gateway: Gateway) -> list[WorkerCard]:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            return await gateway.store.worker_cards()
    except (RedisError, OSError):
        return []


def _workers(cards: list[WorkerCard]) -> Check:
    live = [card for card in cards if card.engine == "alive"]
    models = ", ".join(sorted({card.model for card in live}))
    ready = f"{len(live)} {'worker' if len(live) == 1 else 'workers'} with {models}"
    parts = [ready if live else "no worker has loaded its model"]
    dead = Counter(card.engine for card in cards if card.engine != "alive")
    parts += [f"{count} whose engine {state}" for state, count in sorted(dead.items())]
    return Check(ok=bool(live), detail="; ".join(parts))
