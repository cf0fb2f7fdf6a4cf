"""The events of a job as an SSE stream."""

from typing import Any

from fastapi import APIRouter, Request, Response

from service.access.authentication import CallerKey
from service.access.job_access import check_job_access
from service.contract.errors import MalformedEventId, NotFound
from service.dependencies import GatewayDep, ResponseStack
from service.problems import responses
from service.routes import event_schemas
from service.routes.parameters import JobId
from service.streaming import sse

router = APIRouter(tags=["events"])
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {sse.MEDIA_TYPE: event_schemas.STREAM}, "description": "The events"},
    204: {"description": "The client already has the last event"},
}
_EVENT_ID = {"type": "integer", "minimum": 0, "maximum": 10**18 - 1}
_PARAMETERS = [
    {
        "name": "Last-Event-ID",
        "in": "header",
        "required": False,
        "schema": _EVENT_ID,
        "example": 12,
        "description": "The id of the last event that the client has received: the stream continues after it.",
    },
    {
        "name": "after",
        "in": "query",
        "required": False,
        "schema": _EVENT_ID,
        "example": 12,
        "description": "The same, for clients that cannot send headers. `Last-Event-ID` takes precedence.",
    },
]


@router.get(
    "/captions/{job_id}/events",
    response_class=Response,
    responses={**_RESPONSES, **responses(MalformedEventId, NotFound)},
    openapi_extra={"parameters": _PARAMETERS},
)
async def follow_job(
    job_id: JobId, request: Request, gateway: GatewayDep, key: CallerKey, response_stack: ResponseStack
) -> Response:
    """Stream the job's events to the last one, starting with the first or after the event that the client names."""
    after = sse.last_event_id(request)
    await check_job_access(gateway.store, key, job_id)
    if after is not None and await gateway.store.is_over(job_id, after):
        return Response(status_code=204)
    await response_stack.enter_async_context(gateway.rate_limits.count_stream(key))
    return sse.EventResponse(gateway.follower, job_id, after or 0, gateway.settings.heartbeat_s)
