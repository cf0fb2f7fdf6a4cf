"""Playing a job's video in a browser: the video that the service has kept, and tokens for elements without headers."""

from anyio import to_thread
from fastapi import APIRouter
from fastapi.responses import FileResponse

from service.access.authentication import CallerKey
from service.access.job_access import check_job_access, owner_of
from service.access.job_tokens import JobToken
from service.contract.errors import NotFound
from service.contract.sandbox.signatures import detect
from service.dependencies import GatewayDep
from service.problems import responses
from service.routes.parameters import JobId

router = APIRouter(tags=["captions"])
DEFAULT_TYPE = "video/mp4"
CONTENT_TYPES = {
    "matroska": "video/webm",
    "ogg": "video/ogg",
    "avi": "video/x-msvideo",
    "mpegts": "video/mp2t",
    "mpeg": "video/mpeg",
    "flv": "video/x-flv",
    "asf": "video/x-ms-asf",
}
"""Content types by container. All others are sent as MP4: whatever the file contains, a browser can only play it."""
HEADERS = {
    "Cache-Control": "private, no-store",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "X-Content-Type-Options": "nosniff",
}


@router.get(
    "/captions/{job_id}/video",
    response_class=FileResponse,
    responses={
        200: {"content": {"video/*": {}}, "description": "The video"},
        206: {"content": {"video/*": {}}, "description": "The requested range of bytes"},
        **responses(NotFound),
    },
)
async def show_video(job_id: JobId, gateway: GatewayDep, key: CallerKey) -> FileResponse:
    """Show the video of a job that was created with `keep_video`. Supports ranges of bytes."""
    await check_job_access(gateway.store, key, job_id)
    try:
        path = await gateway.storage.local_video(job_id)
        with path.open("rb") as file:
            container, _ = await to_thread.run_sync(detect, file)
    except FileNotFoundError:
        raise NotFound("The video of this job was not kept.") from None
    return FileResponse(path, media_type=CONTENT_TYPES.get(container or "", DEFAULT_TYPE), headers=HEADERS)


@router.post("/captions/{job_id}/token", responses=responses(NotFound))
async def create_token(job_id: JobId, gateway: GatewayDep, key: CallerKey) -> JobToken:
    """Create a token for reading this job, to be sent as the query parameter `token` instead of an API key.

    The token can read the job, its events, keyframes, clips and kept video for ten minutes, and nothing else.
    """
    await check_job_access(gateway.store, key, job_id)
    return await gateway.tokens.add(job_id, owner_of(key) or "")
