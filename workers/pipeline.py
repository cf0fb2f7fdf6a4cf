"""Runs one job from its first event to its last.

    video:      upload, or fetch -> slot -> frames (decode child) -> keyframes -> differentials -> caption
    clip:       the parent job's differentials -> caption
    recaption:  prompt -> caption

Keyframes are selected and captioned at the same time. `tasks.py` decides who runs a job and what happens if it fails.
`standalone.py` runs this pipeline in a script, without Redis and without the service:

    context = standalone_context(Path("data"), captioner, encoder)
    job = await caption_file(Path("cat.mp4"), context, VideoOptions(mode="fast"))
    print(job.caption)
"""

import asyncio
from datetime import UTC, datetime

from service.contract.errors import DeadlineExceeded
from service.contract.events import Caption, Completed, Started
from service.contract.jobs import ClipOptions, RecaptionOptions, VideoOptions
from workers.attempt import Attempt
from workers.roles import fast, recaption, sliding, summary
from workers.video.fetch import fetch
from workers.video.keyframes import select_keyframes


async def run(attempt: Attempt) -> None:
    """Finish the job within its deadline. Raises SharecapError, Fenced, StreamTruncated or CancelRequested."""
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
    await attempt.events.append(Started(attempt=attempt.number, model=attempt.context.settings.public_model))
    if attempt.job.caption is None:
        await attempt.events.append(await _caption(attempt))
    await attempt.delete_upload()
    await attempt.events.append(Completed(usage=attempt.turn_runner.usage, timings_s=attempt.timings))


async def _caption(attempt: Attempt) -> Caption:
    match attempt.record.options:
        case VideoOptions() as options:
            return await _caption_video(attempt, options)
        case ClipOptions() as options:
            return await summary.caption_clip(attempt, options)
        case RecaptionOptions() as options:
            return await recaption.expand(attempt, options)


async def _caption_video(attempt: Attempt, options: VideoOptions) -> Caption:
    await fetch(attempt)
    await attempt.enter_slot()
    async with select_keyframes(attempt, options) as keyframes:
        if options.mode == "fast":
            return await fast.caption(attempt, options, await keyframes.all())
        differentials = await sliding.describe(attempt, options, keyframes)
    return await summary.summarise(attempt, differentials)
