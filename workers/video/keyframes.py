"""Produces the keyframes of a video: opens the frames, selects keyframes and stores them. Second stage of the pipeline.

Selection does not wait for captioning. Each keyframe is written to a JPEG file, and captioning reads it back from
there. This bounds memory, and a later attempt sees the same pixels.

If a job asks for shots (`parallel`), a keyframe that differs strongly from the previous one starts a new shot.
"""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from PIL import Image

from service.contract.errors import NotFound
from service.contract.events import Keyframes, Video
from service.contract.jobs import Keyframe, VideoOptions
from service.contract.sandbox.probe import VideoInfo, probe
from workers.attempt import Attempt
from workers.video.frames import Frames, Part, open_frames
from workers.video.keyframe_log import KeyframeLog
from workers.video.sampling import TIME_ERROR_S
from workers.video.selection import SelectedFrame, select

JPEG_QUALITY = 95
FULL_CHROMA = 0  # Pillow's `subsampling`: 4:4:4
RATE_ERROR = 0.1
"""A stated frame rate may differ by this fraction from the measured one."""


@asynccontextmanager
async def select_keyframes(attempt: Attempt, options: VideoOptions) -> AsyncIterator[KeyframeLog]:
    """Yield the log of the job's keyframes. A background task selects the missing ones inside the context."""
    log = KeyframeLog(list(attempt.job.keyframes), attempt.keyframes_complete)
    task = None if log.complete else asyncio.create_task(_select(attempt, options, log))
    try:
        yield log
    finally:
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _select(attempt: Attempt, options: VideoOptions, log: KeyframeLog) -> None:
    try:
        async with attempt.context.decoders.place(attempt.record.owner):
            video = await attempt.context.storage.local_upload(attempt.record.id)
            starter = attempt.context.starter
            info = await probe(video, attempt.context.settings.video_limits, starter)
            part, limits = _part(attempt, options), attempt.context.decode_limits
            async with open_frames(video, info, part, limits, starter) as frames:
                await _publish_video(attempt, info, frames)
                with attempt.timed("keyframes"):
                    await _store_selected(attempt, options, log, frames)
    except FileNotFoundError:
        log.fail(NotFound("The video no longer exists."))
    except Exception as error:  # raised when captioning asks for the next keyframe
        log.fail(error)


def _part(attempt: Attempt, options: VideoOptions) -> Part:
    cap = attempt.context.settings.max_keyframes
    return Part(
        interval_s=options.interval_s,
        max_samples=min(options.max_keyframes or cap, cap),
        start_s=options.start_s,
        end_s=options.end_s,
        from_s=attempt.job.keyframes[-1].time_s if attempt.job.keyframes else None,
    )


async def _publish_video(attempt: Attempt, info: VideoInfo, frames: Frames) -> None:
    if attempt.job.interval_s is not None:
        return
    width, height = info.shown_size
    await attempt.events.append(
        Video(
            duration_s=duration_s(info, frames),
            width=width,
            height=height,
            fps=fps(info, frames),
            interval_s=frames.interval_s,
            bytes=attempt.fetched.bytes if attempt.fetched else None,
            sha256=attempt.fetched.sha256 if attempt.fetched else None,
        )
    )


def duration_s(info: VideoInfo, frames: Frames) -> float:
    """Return the stated duration if the last frame is shown before it ends. MPEG-PS states a shorter one."""
    last_frame_s = frames.duration_s - (1 / frames.fps if frames.fps else 0) + TIME_ERROR_S
    return frames.duration_s if info.duration_s is None or info.duration_s < last_frame_s else info.duration_s


def fps(info: VideoInfo, frames: Frames) -> float:
    """Return the stated frame rate, or the measured one if no rate is stated, or that of a clock."""
    is_close = not frames.fps or abs((info.fps or 0) / frames.fps - 1) < RATE_ERROR
    return info.fps if info.fps and is_close else frames.fps


async def _store_selected(attempt: Attempt, options: VideoOptions, log: KeyframeLog, frames: Frames) -> None:
    """Store each selected keyframe, publish it and append it to the log."""
    default_threshold = attempt.context.captioner.defaults.similarity_threshold
    first_is_stored = bool(log.entries)  # a resumed selection starts with the last keyframe of an earlier attempt
    async with aclosing(select(frames, options, attempt.context.encoder, default_threshold)) as batches:
        async for batch in batches:
            attempt.timings.decode = frames.read_s
            new = batch.frames[1:] if first_is_stored else batch.frames
            first_is_stored = False
            if not log.entries and len(new) > 1:  # captioning starts with the first keyframe
                await _store(attempt, log, new[:1], complete=False)
                new = new[1:]
            if new or batch.is_last:
                await _store(attempt, log, new, complete=batch.is_last)


async def _store(attempt: Attempt, log: KeyframeLog, frames: list[SelectedFrame], *, complete: bool) -> None:
    """Store these frames as keyframes, publish them and append them to the log. `complete`: no more will follow."""
    new: list[Keyframe] = []
    for selected in frames:
        previous = new or log.entries
        new.append(await _save(attempt, previous[-1] if previous else None, selected))
    event = Keyframes(keyframes=new, complete=complete)
    if log.entries or complete:
        await attempt.events.append(event)
    else:
        attempt.events.submit(event)  # the first turn need not wait for it
    if complete:
        await attempt.delete_upload()
    log.add(new, complete)


async def _save(attempt: Attempt, previous: Keyframe | None, selected: SelectedFrame) -> Keyframe:
    """Write the JPEG of the keyframe that follows `previous`. Returns its index, time and shot."""
    index, shot = (previous.index + 1, previous.shot + int(selected.starts_shot)) if previous else (0, 0)
    jpeg = await asyncio.to_thread(_encode_jpeg, selected.frame.image)
    await attempt.context.storage.write_keyframe(attempt.record.id, index, jpeg)
    return Keyframe(index=index, time_s=selected.frame.time_s, shot=shot)


def _encode_jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=FULL_CHROMA)
    return buffer.getvalue()


async def read_keyframe(attempt: Attempt, keyframe: Keyframe) -> Image.Image:
    """Return the RGB pixels of the keyframe, decoded from its JPEG."""
    path = await attempt.context.storage.local_keyframe(attempt.record.id, keyframe.index)

    def read() -> Image.Image:
        with Image.open(path) as image:
            return image.convert("RGB")

    return await asyncio.to_thread(read)
