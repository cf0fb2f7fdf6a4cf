"""Jobs: making one from a video, listing, showing, cancelling and deleting them, and their keyframes."""

import re
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel

from service.access.authentication import CallerKey
from service.access.rate_limits import UploadedBytes
from service.contract.errors import (
    IdempotencyConflict,
    InvalidOption,
    NotAVideo,
    NotFound,
    NoWorker,
    StorageFull,
    UnsupportedMedia,
    UrlForbidden,
    UrlUnreachable,
    VideoTooLarge,
    VideoTooLong,
)
from service.contract.jobs import Job, JobKind, JobStatus, JobSummary, Source, VideoOptions
from service.contract.outbound.ssrf import checked
from service.contract.sandbox.probe import VideoInfo, probe
from service.contract.storage import local as files
from service.dependencies import Gateway, GatewayDep
from service.intake import options, uploads
from service.intake.submission import Accepted, Submission, accept, answer, begin, find, status_of, waiting_time
from service.problems import responses
from service.routes import request_bodies as bodies

router = APIRouter(tags=["captions"])
_KEYFRAME = re.compile(r"([0-9]{1,7})\.jpg")
SCANNED = 2000
"""How many jobs one listing looks at: with a rare filter a page may be short, and its cursor leads on."""


class JobPage(BaseModel):
    """One page of a list, newest first; `cursor` gives the next one and is null at the end."""

    jobs: list[JobSummary]
    cursor: str | None = None


@router.post(
    "/captions",
    response_model=Job,
    status_code=202,
    responses={
        200: {"model": Job, "description": "The job ended within the time that `Prefer: wait` gave"},
        **responses(
            NotAVideo,
            UnsupportedMedia,
            VideoTooLarge,
            VideoTooLong,
            UrlForbidden,
            UrlUnreachable,
            StorageFull,
            NoWorker,
            IdempotencyConflict,
        ),
    },
    openapi_extra=bodies.VIDEO,
)
async def caption_video(request: Request, gateway: GatewayDep, key: CallerKey) -> Response:
    """Caption a video: multipart with `file`, or JSON with `url`, each with the options."""
    order = await begin(gateway, request, key)
    wait_s = await waiting_time(gateway, request, order)
    await gateway.store.redis.ping()  # without a queue not a byte of a long upload is worth reading
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type == "multipart/form-data":
        accepted = await _from_upload(request, gateway, order)
    elif content_type == "application/json":
        accepted = await _from_url(request, gateway, order)
    else:
        raise UnsupportedMedia("The body is to be multipart/form-data with a `file`, or application/json with a `url`.")
    return await answer(gateway, order, accepted, wait_s)


async def _from_upload(request: Request, gateway: Gateway, order: Submission) -> Accepted:
    paid = UploadedBytes(gateway.limits, order.key)
    async with uploads.upload(request, gateway.settings, paid) as upload:
        chosen, metadata = options.from_form(JobKind.VIDEO, upload.form.fields)
        assert isinstance(chosen, VideoOptions)
        chosen = _capped(chosen, gateway.settings.max_keyframes)
        async with gateway.probing:
            info = await probe(upload.path, gateway.settings.video_limits)
        _check_part(chosen, info)
        width, height = info.shown_size
        source = Source(
            filename=upload.form.filename,
            bytes=upload.bytes,
            sha256=upload.sha256,
            duration_s=info.duration_s,
            width=width,
            height=height,
            fps=info.fps,
        )
        return await accept(gateway, order, JobKind.VIDEO, chosen, metadata, source=source, upload=upload)


async def _from_url(request: Request, gateway: Gateway, order: Submission) -> Accepted:
    values = await options.json_body(request)
    told = values.pop("url", None)
    chosen, metadata = options.from_json(JobKind.VIDEO, values)
    assert isinstance(chosen, VideoOptions)
    chosen = _capped(chosen, gateway.settings.max_keyframes)
    if not isinstance(told, str):
        raise InvalidOption("url: an address is needed, or a form with a `file`")
    url = checked(told, gateway.settings.allowed_hosts)
    source = Source(url=str(url), filename=uploads.plain_name(url.name))
    return await accept(gateway, order, JobKind.VIDEO, chosen, metadata, source=source)


def _capped(chosen: VideoOptions, cap: int) -> VideoOptions:
    if chosen.max_keyframes is not None and chosen.max_keyframes > cap:
        raise InvalidOption(f"max_keyframes: at most {cap}")
    return chosen.model_copy(update={"max_keyframes": chosen.max_keyframes or cap})


def _check_part(chosen: VideoOptions, info: VideoInfo) -> None:
    if info.duration_s is not None and (chosen.start_s or 0) >= info.duration_s:
        raise InvalidOption(f"start_s: the video lasts {info.duration_s:.3f} s")


@router.get("/captions", responses=responses())
async def list_jobs(
    *,
    gateway: GatewayDep,
    key: CallerKey,
    status: JobStatus | None = None,
    kind: JobKind | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: str | None = None,
) -> JobPage:
    """List the jobs of the key that asks, newest first, without their results."""
    place = _place(cursor) if cursor else None
    owner = key.id if key else None
    found: list[JobSummary] = []
    for _ in range(max(1, SCANNED // limit)):
        places = await gateway.store.page(place, limit, owner)
        by_id = {job.id: job for job in await gateway.store.summaries([job_id for _, job_id in places])}
        for place in places:
            job = by_id.get(place[1])
            if job and status in (None, job.status) and kind in (None, job.kind):
                found.append(job)
            if len(found) == limit:
                return JobPage(jobs=found, cursor=f"{place[0]}-{place[1]}")
        if len(places) < limit:
            return JobPage(jobs=found)
    assert place is not None
    return JobPage(jobs=found, cursor=f"{place[0]}-{place[1]}")


def _place(cursor: str) -> tuple[int, str]:
    created_ms, dash, job_id = cursor.partition("-")
    if not (dash and created_ms.isascii() and created_ms.isdigit() and len(created_ms) < 18):
        raise InvalidOption("cursor: take it from the page before")
    return int(created_ms), job_id


@router.get("/captions/{job_id}", responses=responses(NotFound))
async def show_job(job_id: str, gateway: GatewayDep, key: CallerKey) -> Job:
    """Show the job with all its results so far."""
    return await find(gateway, key, job_id)


@router.get(
    "/captions/{job_id}/keyframes/{name}",
    response_class=FileResponse,
    responses={200: {"content": {"image/jpeg": {}}}, **responses(NotFound)},
)
async def show_keyframe(job_id: str, name: str, gateway: GatewayDep, key: CallerKey) -> FileResponse:
    """Show a keyframe: `name` is its number and `.jpg`."""
    await status_of(gateway, key, job_id)
    number = _KEYFRAME.fullmatch(name)
    path = files.keyframe_path(gateway.settings.data_dir, job_id, int(number[1])) if number else None
    if path is None or not path.is_file():
        raise NotFound("There is no such keyframe.")
    headers = {"Cache-Control": "private, max-age=86400, immutable", "X-Content-Type-Options": "nosniff"}
    return FileResponse(path, media_type="image/jpeg", headers=headers)


@router.post("/captions/{job_id}/cancel", responses=responses(NotFound))
async def cancel_job(job_id: str, gateway: GatewayDep, key: CallerKey) -> Job:
    """Cancel the job; one that has ended stays as it is. A worker that is at it stops within seconds."""
    await status_of(gateway, key, job_id)
    status = await gateway.store.cancel(job_id)
    if status is not None and status.ended:
        await gateway.retention.remove_upload(job_id)
    return await find(gateway, key, job_id)


@router.delete("/captions/{job_id}", status_code=204, responses=responses(NotFound))
async def delete_job(job_id: str, gateway: GatewayDep, key: CallerKey) -> Response:
    """Cancel the job if needed, then remove its record, events and files."""
    await status_of(gateway, key, job_id)
    await gateway.store.cancel(job_id)
    await gateway.retention.remove(job_id)
    gateway.follower.forget(job_id)
    return Response(status_code=204)
