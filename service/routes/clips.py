"""Clips: a caption for a part of a video, from its differential captions alone."""

from fastapi import APIRouter, Request, Response

from service.access.authentication import CallerKey
from service.contract.errors import IdempotencyConflict, InvalidOption, NotFound, NoWorker, UnsupportedMedia
from service.contract.jobs import ClipOptions, Job, JobKind
from service.dependencies import GatewayDep
from service.intake import options
from service.intake.submission import accept, answer, begin, find, waiting_time
from service.problems import responses
from service.routes import request_bodies as bodies

router = APIRouter(tags=["clips"])
WAIT_S = 60
ROUNDED_S = 0.1
"""What a client may have rounded the video's duration up by."""


@router.post(
    "/captions/{job_id}/clips",
    response_model=Job,
    responses={
        202: {"model": Job, "description": "The job has not ended in the time that was waited"},
        **responses(NotFound, UnsupportedMedia, NoWorker, IdempotencyConflict),
    },
    openapi_extra=bodies.CLIP,
)
async def caption_clip(job_id: str, request: Request, gateway: GatewayDep, key: CallerKey) -> Response:
    """Caption a clip from the differential captions that the job has so far; no frame is read again."""
    parent = await find(gateway, key, job_id)
    order = await begin(gateway, request, key)
    chosen, metadata = options.from_json(JobKind.CLIP, await options.json_body(request))
    assert isinstance(chosen, ClipOptions)
    _check_part(parent, chosen)
    wait_s = await waiting_time(gateway, request, order, WAIT_S)
    accepted = await accept(gateway, order, JobKind.CLIP, chosen, metadata, parent=job_id)
    return await answer(gateway, order, accepted, wait_s)


def _check_part(parent: Job, chosen: ClipOptions) -> None:
    if parent.kind is not JobKind.VIDEO:
        raise InvalidOption("The job is not one of a video, so it has no clips.")
    duration_s = parent.source.duration_s if parent.source else None
    for name, outside in (("start_s", 0.0), ("end_s", ROUNDED_S)):
        if duration_s is not None and getattr(chosen, name) >= duration_s + outside:
            raise InvalidOption(f"{name}: the video lasts {duration_s:.3f} s")
    if not any(differential.time_s <= chosen.end_s for differential in parent.differentials):
        raise InvalidOption("end_s: the job has no differential caption up to there yet")
