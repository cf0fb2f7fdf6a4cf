"""Recaption: a short prompt written out into a dense caption, waited for or streamed."""

from fastapi import APIRouter, Request, Response

from service.access.authentication import CallerKey
from service.contract.errors import IdempotencyConflict, InvalidOption, NoWorker, UnsupportedMedia
from service.contract.jobs import Job, JobKind
from service.dependencies import GatewayDep, ResponseStack
from service.intake import options
from service.intake.submission import accept, answer, begin, waiting_time
from service.problems import responses
from service.routes import request_bodies as bodies
from service.streaming import sse

router = APIRouter(tags=["recaption"])
WAIT_S = 60


@router.post(
    "/recaption",
    response_model=Job,
    responses={
        200: {"model": Job, "content": {sse.MEDIA_TYPE: {}}, "description": "The ended job, or its events"},
        202: {"model": Job, "description": "The job has not ended in the time that was waited"},
        **responses(UnsupportedMedia, NoWorker, IdempotencyConflict),
    },
    openapi_extra=bodies.RECAPTION,
)
async def recaption(request: Request, gateway: GatewayDep, key: CallerKey, closing: ResponseStack) -> Response:
    """Write a prompt out into a dense caption. Waits 60 s unless told otherwise."""
    order = await begin(gateway, request, key)
    values = await options.json_body(request)
    streamed = values.pop("stream", False)
    if not isinstance(streamed, bool):
        raise InvalidOption("stream: true or false")
    streamed = streamed or sse.MEDIA_TYPE in request.headers.get("accept", "")
    chosen, metadata = options.from_json(JobKind.RECAPTION, values)
    wait_s = 0 if streamed else await waiting_time(gateway, request, order, WAIT_S)
    if streamed:
        await closing.enter_async_context(gateway.limits.stream(key))
    accepted = await accept(gateway, order, JobKind.RECAPTION, chosen, metadata)
    if not streamed:
        return await answer(gateway, order, accepted, wait_s)
    return sse.EventResponse(gateway.follower, accepted.id, 0, gateway.settings.heartbeat_s, headers=accepted.headers)
