"""Whether the process lives, whether the service can do its work, and its numbers."""

import asyncio

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from redis.exceptions import RedisError

from service.contract.errors import StorageFull
from service.contract.storage.local import check_room
from service.dependencies import Gateway, GatewayDep
from service.problems import responses

router = APIRouter(tags=["health"])
OPEN: dict[str, list[str]] = {"security": []}
"""In the OpenAPI document: no key is needed."""
TIMEOUT_S = 2.0


class Check(BaseModel):
    ok: bool
    detail: str


class Readiness(BaseModel):
    ready: bool
    checks: dict[str, Check]


@router.get("/healthz", openapi_extra=OPEN)
async def alive() -> dict[str, str]:
    """Answer: the process lives."""
    return {"status": "ok"}


@router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}}, openapi_extra=OPEN)
async def ready(gateway: GatewayDep) -> Response:
    """Tell whether Redis is reached, the disk has room and a worker with its model loaded lives."""
    checks = {"redis": await _redis(gateway), "disk": _disk(gateway), "workers": await _workers(gateway)}
    told = Readiness(ready=all(check.ok for check in checks.values()), checks=checks)
    return Response(told.model_dump_json(), 200 if told.ready else 503, media_type="application/json")


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **responses()})
async def metrics(gateway: GatewayDep) -> Response:
    """Tell Prometheus."""
    text = await gateway.metrics.text(gateway.store, gateway.follower)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


async def _redis(gateway: Gateway) -> Check:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await gateway.store.redis.ping()
    except (RedisError, OSError):
        return Check(ok=False, detail="not reached")
    return Check(ok=True, detail="reached")


def _disk(gateway: Gateway) -> Check:
    try:
        check_room(gateway.settings.data_dir, gateway.settings.min_free_bytes)
    except (StorageFull, OSError):
        return Check(ok=False, detail="no room for uploads")
    return Check(ok=True, detail="room for uploads")


async def _workers(gateway: Gateway) -> Check:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            cards = await gateway.store.workers()
    except (RedisError, OSError):
        cards = []
    models = ", ".join(sorted({card.model for card in cards}))
    return Check(ok=bool(cards), detail=f"{len(cards)} live" + (f": {models}" if models else ""))
