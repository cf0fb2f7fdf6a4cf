"""One job from its start to its last event, on one screen.

    video:      upload, or fetch -> frames (decode child) -> keyframes -> differentials -> caption
    clip:       the parent's differentials -> caption
    recaption:  prompt -> caption

Finding keyframes and captioning them run at the same time. Who may do this, and what happens when it fails, is decided
in `tasks.py`.
"""

import asyncio
from datetime import UTC, datetime

from service.contract.errors import DeadlineExceeded
from service.contract.events import Caption, Completed, Started
from service.contract.jobs import JobKind
from workers.attempt import Attempt
from workers.roles import fast, recaption, sliding, summary
from workers.roles.turns import video_options
from workers.video.fetch import fetch
from workers.video.keyframes import selecting


async def run(attempt: Attempt) -> None:
    """Do what is left of the job in the time it has. Raises SharecapError, Fenced, CancelRequested."""
    record = attempt.record
    left_s = None
    if record.options.deadline_s is not None:
        left_s = record.options.deadline_s - (datetime.now(UTC) - record.created_at).total_seconds()
    try:
        async with asyncio.timeout(left_s) as deadline:
            await _run(attempt)
    except TimeoutError:
        if not deadline.expired():
            raise
        raise DeadlineExceeded(f"The job did not end within {record.options.deadline_s:g} s.") from None


async def _run(attempt: Attempt) -> None:
    await attempt.publisher.append(Started(attempt=attempt.number))
    if attempt.job.caption is None:
        await attempt.publisher.append(await _caption(attempt))
    attempt.remove_upload()
    await attempt.publisher.append(Completed(usage=attempt.turns.usage, timings_s=attempt.timings))


async def _caption(attempt: Attempt) -> Caption:
    match attempt.record.kind:
        case JobKind.VIDEO:
            return await _caption_video(attempt)
        case JobKind.CLIP:
            return Caption(text=await summary.caption_clip(attempt))
        case JobKind.RECAPTION:
            return Caption(text=await recaption.write_out(attempt))


async def _caption_video(attempt: Attempt) -> Caption:
    await fetch(attempt)
    async with selecting(attempt) as keyframes:
        if video_options(attempt.record).mode == "fast":
            text, seen = await fast.caption(attempt, await keyframes.all())
            return Caption(text=text, keyframes_seen=seen)
        differentials = await sliding.describe(attempt, keyframes)
    return Caption(text=await summary.summarise(attempt, differentials))
