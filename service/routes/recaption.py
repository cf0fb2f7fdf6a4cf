"""Recaption: expands a short prompt into a dense caption. The client waits for the result or streams it."""

from fastapi import APIRouter, Request, Response

from service.access.authentication import CallerKey
from service.contract.errors import IdempotencyConflict, InvalidOption, NoWorker, StorageFull, UnsupportedMedia
from service.contract.jobs import JobKind, RecaptionOptions
from service.dependencies import GatewayDep, ResponseStack
from service.intake import options
from service.intake.submission import JobRequest, begin, check_wait_s, job_response, submit
from service.presentation import Job
from service.problems import JOB_ERRORS, responses
from service.routes import event_schemas
from service.routes import request_bodies as bodies
from service.streaming import sse

router = APIRouter(tags=["recaption"])


@router.post(
    "/recaption",
    response_model=Job,
    responses={
        200: {
            "model": Job,
            "content": {sse.MEDIA_TYPE: event_schemas.STREAM},
            "description": "The ended job, or its events",
        },
        202: {"model": Job, "description": "The job did not end within the time given by `Prefer: wait`"},
        **responses(UnsupportedMedia, StorageFull, NoWorker, IdempotencyConflict, *JOB_ERRORS),
    },
    openapi_extra=bodies.RECAPTION,
)
async def recaption(request: Request, gateway: GatewayDep, key: CallerKey, response_stack: ResponseStack) -> Response:
    """Expand a prompt into a dense caption. Waits up to 60 s unless `Prefer: wait=N` is sent."""
    submission = await begin(gateway, request, key)
    values = await options.json_body(request)
    stream = values.pop("stream", False)
    if not isinstance(stream, bool):
        raise InvalidOption("stream: must be true or false")
    recaption_options, metadata = options.from_json(RecaptionOptions, values)
    job_request = JobRequest(JobKind.RECAPTION, recaption_options, metadata)
    if stream or sse.MEDIA_TYPE in request.headers.get("accept", ""):
        await response_stack.enter_async_context(gateway.rate_limits.count_stream(key))
        accepted = await submit(gateway, submission, job_request)
        heartbeat_s = gateway.settings.heartbeat_s
        return sse.EventResponse(gateway.follower, accepted.id, 0, heartbeat_s, headers=accepted.headers)
    wait_s = await check_wait_s(gateway, request, submission, options.DEFAULT_WAIT_S)
    accepted = await submit(gateway, submission, job_request)
    return await job_response(gateway, submission, accepted, wait_s)
