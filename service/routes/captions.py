"""Jobs: making one from a video, listing, showing, cancelling and deleting them, and their keyframes."""

import shutil
from pathlib import Path
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel

from service import options, uploads
from service.contract import files
from service.contract.errors import (
    InvalidOption,
    NotAVideo,
    NotFound,
    NoWorker,
    StorageFull,
    UnsupportedMedia,
    UrlForbidden,
    VideoTooLarge,
    VideoTooLong,
)
from service.contract.jobs import Job, JobKind, JobStatus, JobSummary, Record, Source, VideoOptions, new_job_id
from service.contract.probe import VideoInfo, probe
from service.gateway import Gateway, Here
from service.jobs import accept, answer, find, status_of, waiting_time
from service.problems import responses
from service.routes import bodies

router = APIRouter(tags=["captions"])
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
        **responses(NotAVideo, UnsupportedMedia, VideoTooLarge, VideoTooLong, UrlForbidden, StorageFull, NoWorker),
    },
    openapi_extra=bodies.VIDEO,
)
async def caption_video(request: Request, gateway: Here) -> Response:
    """Caption a video: multipart with `file`, or JSON with `url`, each with the options."""
    wait_s = await waiting_time(gateway, request)
    await gateway.store.redis.ping()  # without a queue not a byte of a long upload is worth reading
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type == "multipart/form-data":
        record = await _from_upload(request, gateway)
    elif content_type == "application/json":
        record = await _from_url(request)
    else:
        raise UnsupportedMedia("The body is to be multipart/form-data with a `file`, or application/json with a `url`.")
    return await answer(gateway, request, record, wait_s)


async def _from_upload(request: Request, gateway: Gateway) -> Record:
    job_id = new_job_id()
    async with uploads.upload(request, gateway.settings, job_id) as upload:
        chosen, metadata = options.from_form(JobKind.VIDEO, upload.form.fields)
        assert isinstance(chosen, VideoOptions)
        chosen = _capped(chosen, gateway.settings.max_keyframes)
        async with gateway.probing:
            info = await probe(upload.path, gateway.settings.video_limits)
        _check_part(chosen, info)
        await upload.keep()
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
        record = await accept(gateway, JobKind.VIDEO, chosen, metadata, job_id=job_id, source=source)
        upload.kept = True
        return record


async def _from_url(request: Request) -> Record:
    values = await options.json_body(request)
    url = values.pop("url", None)
    options.from_json(JobKind.VIDEO, values)
    if not isinstance(url, str):
        raise InvalidOption("url: an address is needed, or a form with a `file`")
    raise UrlForbidden("This service fetches no addresses; upload the video as `file`.")


def _capped(chosen: VideoOptions, cap: int) -> VideoOptions:
    if chosen.max_keyframes is not None and chosen.max_keyframes > cap:
        raise InvalidOption(f"max_keyframes: at most {cap}")
    return chosen.model_copy(update={"max_keyframes": chosen.max_keyframes or cap})


def _check_part(chosen: VideoOptions, info: VideoInfo) -> None:
    if info.duration_s is not None and (chosen.start_s or 0) >= info.duration_s:
        raise InvalidOption(f"start_s: the video lasts {info.duration_s:.3f} s")


@router.get("/captions", responses=responses())
async def list_jobs(
    gateway: Here,
    status: JobStatus | None = None,
    kind: JobKind | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: str | None = None,
) -> JobPage:
    """List jobs, newest first, without their results."""
    place = _place(cursor) if cursor else None
    found: list[JobSummary] = []
    for _ in range(max(1, SCANNED // limit)):
        places = await gateway.store.page(place, limit)
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
async def show_job(job_id: str, gateway: Here) -> Job:
    """Show the job with all its results so far."""
    return await find(gateway, job_id)


@router.get(
    "/captions/{job_id}/keyframes/{index:int}.jpg",
    response_class=FileResponse,
    responses={200: {"content": {"image/jpeg": {}}}, **responses(NotFound)},
)
async def show_keyframe(job_id: str, index: int, gateway: Here) -> FileResponse:
    """Show a keyframe."""
    await status_of(gateway, job_id)
    path = files.keyframe_path(gateway.settings.data_dir, job_id, index)
    if not path.is_file():
        raise NotFound("There is no such keyframe.")
    headers = {"Cache-Control": "private, max-age=86400, immutable", "X-Content-Type-Options": "nosniff"}
    return FileResponse(path, media_type="image/jpeg", headers=headers)


@router.post("/captions/{job_id}/cancel", responses=responses(NotFound))
async def cancel_job(job_id: str, gateway: Here) -> Job:
    """Cancel the job; one that has ended stays as it is. A worker that is at it stops within seconds."""
    await status_of(gateway, job_id)
    await gateway.store.cancel(job_id)
    return await find(gateway, job_id)


@router.delete("/captions/{job_id}", status_code=204, responses=responses(NotFound))
async def delete_job(job_id: str, gateway: Here) -> Response:
    """Cancel the job if needed, then remove its record, events and files."""
    await status_of(gateway, job_id)
    await gateway.store.cancel(job_id)
    await gateway.store.delete(job_id)
    gateway.follower.forget(job_id)
    await to_thread.run_sync(_remove_files, gateway.settings.data_dir, job_id)
    return Response(status_code=204)


def _remove_files(data_dir: Path, job_id: str) -> None:
    files.upload_path(data_dir, job_id).unlink(missing_ok=True)
    shutil.rmtree(files.keyframes_dir(data_dir, job_id), ignore_errors=True)
