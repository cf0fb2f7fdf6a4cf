"""Jobs: create one from a video, list, show, cancel and delete jobs, and show their keyframes."""

import re
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel

from service.access.authentication import CallerKey
from service.access.job_access import check_job_access, load_job, owner_of
from service.access.rate_limits import ByteBudget
from service.contract.errors import (
    DecodeFailed,
    IdempotencyConflict,
    InvalidOption,
    NotAVideo,
    NotFound,
    NoWorker,
    StorageFull,
    UnreadableJob,
    UnsupportedMedia,
    UrlForbidden,
    UrlUnreachable,
    VideoTooLarge,
    VideoTooLong,
)
from service.contract.jobs import JobKind, JobStatus, Source, VideoOptions
from service.contract.outbound.ssrf import check_url
from service.contract.sandbox.probe import VideoInfo, probe
from service.dependencies import Gateway, GatewayDep
from service.intake import options, uploads
from service.intake.submission import Accepted, JobRequest, Submission, begin, check_wait_s, job_response, submit
from service.presentation import Job, JobSummary, present_job, present_summary
from service.problems import JOB_ERRORS, responses
from service.routes import request_bodies as bodies
from service.routes.cursors import cursor_of, parse_cursor
from service.routes.parameters import Cursor, JobId, Limit

router = APIRouter(tags=["captions"])
_KEYFRAME_NAME = re.compile(r"([0-9]{1,7})\.jpg")
KeyframeName = Annotated[str, Path(description="The keyframe's index, from 0, and `.jpg`.", examples=["0.jpg"])]
StatusFilter = Annotated[JobStatus | None, Query(description="Only jobs with this status.", examples=["completed"])]
KindFilter = Annotated[JobKind | None, Query(description="Only jobs of this kind.", examples=["video"])]
MAX_SCANNED = 2000
"""Maximum number of jobs that one listing reads. With a rare filter, a page can be short and still have a cursor."""


class JobPage(BaseModel):
    """One page of a list, newest first. `cursor` selects the next page; it is null on the last page."""

    jobs: list[JobSummary]
    cursor: str | None = None


@router.post(
    "/captions",
    response_model=Job,
    status_code=202,
    responses={
        200: {"model": Job, "description": "The job ended within the time given by `Prefer: wait`"},
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
            DecodeFailed,
            *JOB_ERRORS,
        ),
    },
    openapi_extra=bodies.VIDEO,
)
async def caption_video(request: Request, gateway: GatewayDep, key: CallerKey) -> Response:
    """Caption a video. Send multipart/form-data with `file` or JSON with `url`, together with the options."""
    submission = await begin(gateway, request, key)
    wait_s = await check_wait_s(gateway, request, submission)
    await gateway.store.redis.ping()  # do not read a long upload if the job could not be queued
    match options.media_type(request):
        case "multipart/form-data":
            accepted = await _from_upload(request, gateway, submission)
        case "application/json":
            accepted = await _from_url(request, gateway, submission)
        case _:
            raise UnsupportedMedia("Send multipart/form-data with a `file`, or application/json with a `url`.")
    return await job_response(gateway, submission, accepted, wait_s)


async def _from_upload(request: Request, gateway: Gateway, submission: Submission) -> Accepted:
    budget = ByteBudget(gateway.rate_limits, submission.key)
    async with uploads.upload(request, gateway.storage, gateway.settings.max_upload_bytes, budget) as upload:
        video_options, metadata = options.from_form(VideoOptions, upload.form.fields)
        video_options = _with_max_keyframes(video_options, gateway.settings.max_keyframes)
        async with gateway.probes.hold(owner_of(submission.key)):
            info = await probe(upload.video.path, gateway.settings.video_limits, gateway.starter)
        _check_start(video_options, info)
        job_request = JobRequest(JobKind.VIDEO, video_options, metadata, _source(upload, info))
        return await submit(gateway, submission, job_request, upload)


async def _from_url(request: Request, gateway: Gateway, submission: Submission) -> Accepted:
    values = await options.json_body(request)
    text = values.pop("url", None)
    video_options, metadata = options.from_json(VideoOptions, values)
    video_options = _with_max_keyframes(video_options, gateway.settings.max_keyframes)
    if not isinstance(text, str):
        raise InvalidOption("url: send the URL of a video, or multipart/form-data with a `file`")
    if video_options.keep_video:
        raise InvalidOption("keep_video: only an uploaded video can be kept")
    url = check_url(text, gateway.settings.allowed_hosts)
    source = Source(url=str(url), filename=uploads.plain_name(url.name))
    return await submit(gateway, submission, JobRequest(JobKind.VIDEO, video_options, metadata, source))


def _source(upload: uploads.Upload, info: VideoInfo) -> Source:
    width, height = info.shown_size
    return Source(
        filename=upload.form.filename,
        bytes=upload.video.size,
        sha256=upload.video.sha256,
        duration_s=info.duration_s,
        width=width,
        height=height,
        fps=info.fps,
    )


def _with_max_keyframes(video_options: VideoOptions, limit: int) -> VideoOptions:
    if video_options.max_keyframes is not None and video_options.max_keyframes > limit:
        raise InvalidOption(f"max_keyframes: at most {limit}")
    return video_options.model_copy(update={"max_keyframes": video_options.max_keyframes or limit})


def _check_start(video_options: VideoOptions, info: VideoInfo) -> None:
    if info.duration_s is not None and (video_options.start_s or 0) >= info.duration_s:
        raise InvalidOption(f"start_s: the video lasts {info.duration_s:.3f} s")


@router.get("/captions", responses=responses())
async def list_jobs(
    *,
    gateway: GatewayDep,
    key: CallerKey,
    status: StatusFilter = None,
    kind: KindFilter = None,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> JobPage:
    """List the caller's jobs, newest first, without their results."""
    before = parse_cursor(cursor)
    jobs: list[JobSummary] = []
    for _ in range(max(1, MAX_SCANNED // limit)):
        positions = await gateway.store.page(before, limit, owner_of(key))
        summaries = await _summaries(gateway, [position.job_id for position in positions])
        for position in positions:
            before = position
            job = summaries.get(position.job_id)
            if job and status in (None, job.status) and kind in (None, job.kind):
                jobs.append(job)
            if len(jobs) == limit:
                return JobPage(jobs=jobs, cursor=cursor_of(position))
        if len(positions) < limit:
            return JobPage(jobs=jobs)
    return JobPage(jobs=jobs, cursor=cursor_of(before) if before else None)


async def _summaries(gateway: Gateway, job_ids: list[str]) -> dict[str, JobSummary]:
    """Return the summaries of those jobs that still exist, by job id."""
    records = await gateway.store.records(job_ids)
    return {record.id: present_summary(record, status) for record, status in records}


@router.get("/captions/{job_id}", responses=responses(NotFound))
async def show_job(job_id: JobId, gateway: GatewayDep, key: CallerKey) -> Job:
    """Show the job with all its results so far."""
    job = await load_job(gateway.states, key, job_id)
    position = await gateway.store.queue_position(job_id) if job.status is JobStatus.QUEUED else None
    return present_job(job, position)


@router.get(
    "/captions/{job_id}/keyframes/{name}",
    response_class=FileResponse,
    responses={200: {"content": {"image/jpeg": {}}}, **responses(NotFound)},
)
async def show_keyframe(job_id: JobId, name: KeyframeName, gateway: GatewayDep, key: CallerKey) -> FileResponse:
    """Show a keyframe as a JPEG image."""
    await check_job_access(gateway.store, key, job_id)
    match = _KEYFRAME_NAME.fullmatch(name)
    if match is None:
        raise NotFound("This keyframe does not exist.")
    try:
        path = await gateway.storage.local_keyframe(job_id, int(match[1]))
    except FileNotFoundError:
        raise NotFound("This keyframe does not exist.") from None
    headers = {"Cache-Control": "private, max-age=86400, immutable", "X-Content-Type-Options": "nosniff"}
    return FileResponse(path, media_type="image/jpeg", headers=headers)


@router.post("/captions/{job_id}/cancel", responses=responses(NotFound))
async def cancel_job(job_id: JobId, gateway: GatewayDep, key: CallerKey) -> Job:
    """Cancel the job. A job that has ended does not change; a running job stops within seconds."""
    await check_job_access(gateway.store, key, job_id)
    status = await gateway.store.cancel(job_id)
    if status is not None and status.ended:
        await gateway.storage.delete_upload(job_id)
    return present_job(await load_job(gateway.states, key, job_id))


@router.delete("/captions/{job_id}", status_code=204, responses=responses(NotFound))
async def delete_job(job_id: JobId, gateway: GatewayDep, key: CallerKey) -> Response:
    """Cancel the job if it has not ended, then delete its record, events and files."""
    await check_job_access(gateway.store, key, job_id)
    with suppress(UnreadableJob):
        await gateway.store.cancel(job_id)
    await gateway.retention.delete_job(job_id)
    gateway.follower.forget(job_id)
    gateway.states.forget(job_id)
    return Response(status_code=204)
