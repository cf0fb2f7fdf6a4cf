"""The events of a job by SSE."""

from typing import Any

from fastapi import APIRouter, Request, Response

from service.access.authentication import CallerKey
from service.contract.errors import MalformedEventId, NotFound
from service.dependencies import GatewayDep, ResponseStack
from service.intake.submission import status_of
from service.problems import responses
from service.streaming import sse

router = APIRouter(tags=["events"])
_TOLD: dict[int | str, dict[str, Any]] = {
    200: {"content": {sse.MEDIA_TYPE: {"schema": {"type": "string"}}}, "description": "The events"},
    204: {"description": "The client has the last event already"},
}
_PLACES = [
    {"name": "Last-Event-ID", "in": "header", "required": False, "schema": {"type": "integer", "minimum": 0}},
    {"name": "after", "in": "query", "required": False, "schema": {"type": "integer", "minimum": 0}},
]


@router.get(
    "/captions/{job_id}/events",
    response_class=Response,
    responses={**_TOLD, **responses(MalformedEventId, NotFound)},
    openapi_extra={"parameters": _PLACES},
)
async def follow_job(
    job_id: str, request: Request, gateway: GatewayDep, key: CallerKey, closing: ResponseStack
) -> Response:
    """Stream the job's events, from the first or from after the one that the client names, to the last."""
    after = sse.place_asked_for(request)
    status = await status_of(gateway, key, job_id)
    if after is not None and status.ended and not await gateway.store.entries(job_id, after, 1):
        return Response(status_code=204)
    await closing.enter_async_context(gateway.limits.stream(key))
    return sse.EventResponse(gateway.follower, job_id, after or 0, gateway.settings.heartbeat_s)
