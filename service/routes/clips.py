"""Clips: a caption for a part of a video, generated from the video's differential captions alone."""

from contextlib import suppress

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from service.access.authentication import CallerKey
from service.access.job_access import check_job_access, load_job
from service.contract.errors import (
    IdempotencyConflict,
    InvalidOption,
    NotFound,
    NoWorker,
    StorageFull,
    UnreadableJob,
    UnsupportedMedia,
)
from service.contract.jobs import ClipOptions, JobKind, JobState
from service.dependencies import GatewayDep
from service.intake import options
from service.intake.submission import JobRequest, begin, check_wait_s, job_response, submit
from service.presentation import Job, present_job
from service.problems import JOB_ERRORS, responses
from service.routes import request_bodies as bodies
from service.routes.cursors import cursor_of, parse_cursor
from service.routes.parameters import Cursor, JobId, Limit

router = APIRouter(tags=["clips"])
ROUNDING_S = 0.1
"""`end_s` may exceed the duration by this much, because clients round the duration up."""


class ClipPage(BaseModel):
    """One page of the clips of a video job, newest first. `cursor` selects the next page; null on the last page."""

    clips: list[Job]
    cursor: str | None = None


@router.post(
    "/captions/{job_id}/clips",
    response_model=Job,
    responses={
        202: {"model": Job, "description": "The job did not end within the time given by `Prefer: wait`"},
        **responses(NotFound, UnsupportedMedia, StorageFull, NoWorker, IdempotencyConflict, *JOB_ERRORS),
    },
    openapi_extra=bodies.CLIP,
)
async def caption_clip(job_id: JobId, request: Request, gateway: GatewayDep, key: CallerKey) -> Response:
    """Caption a clip from the differential captions that the job has so far. No frames are decoded again."""
    parent = await load_job(gateway.states, key, job_id)
    submission = await begin(gateway, request, key)
    clip_options, metadata = options.from_json(ClipOptions, await options.json_body(request))
    _check_bounds(parent, clip_options)
    wait_s = await check_wait_s(gateway, request, submission, options.DEFAULT_WAIT_S)
    accepted = await submit(gateway, submission, JobRequest(JobKind.CLIP, clip_options, metadata, parent=job_id))
    return await job_response(gateway, submission, accepted, wait_s)


@router.get("/captions/{job_id}/clips", responses=responses(NotFound))
async def list_clips(
    *,
    job_id: JobId,
    gateway: GatewayDep,
    key: CallerKey,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> ClipPage:
    """List the clips of a video job with their results, newest first."""
    await check_job_access(gateway.store, key, job_id)
    positions = await gateway.store.page(parse_cursor(cursor), limit + 1, parent=job_id)  # one more: is there another?
    clips = []
    for position in positions[:limit]:
        with suppress(UnreadableJob):
            if clip := await gateway.states.job(position.job_id):
                clips.append(present_job(clip))
    return ClipPage(clips=clips, cursor=cursor_of(positions[limit - 1]) if len(positions) > limit else None)


def _check_bounds(parent: JobState, clip: ClipOptions) -> None:
    if parent.kind is not JobKind.VIDEO:
        raise InvalidOption("Clips can only be made of a video job.")
    duration_s = parent.source.duration_s if parent.source else None
    if duration_s is not None:
        for name, value, limit_s in (
            ("start_s", clip.start_s, duration_s),
            ("end_s", clip.end_s, duration_s + ROUNDING_S),
        ):
            if value >= limit_s:
                raise InvalidOption(f"{name}: the video lasts {duration_s:.3f} s")
    if not any(differential.time_s <= clip.end_s for differential in parent.differentials):
        raise InvalidOption("end_s: the job has no differential caption before this time yet")
