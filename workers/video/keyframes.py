"""Frames -> keyframes: second stage of the pipeline.

Selection runs ahead of captioning and does not wait for it: a keyframe's pixels go to its JPEG file, from which
captioning reads them back. So memory is bounded, and a later attempt sees the same pixels.

Where a job asks for shots (`parallel`), a keyframe that is far less like the one before it begins a new shot.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from service.contract.errors import NotFound
from service.contract.events import Keyframes, Video
from service.contract.jobs import Keyframe, VideoOptions
from service.contract.sandbox.probe import VideoInfo, probe
from service.contract.storage.local import storing, sync_names
from workers.attempt import Attempt
from workers.models.engine import FrameEncoder
from workers.video.frames import Frame, Frames, Part, open_frames

JPEG_QUALITY = 95
FULL_CHROMA = 0  # Pillow's `subsampling`: 4:4:4
BATCH = 8
CUT_FACTOR = 4.0
"""A cut is this many times as far from likeness 1 as what is only just a keyframe: 0.72 where that is 0.93."""
NO_CUT = -2.0  # below any cosine
EVERY_SAMPLE = 2.0  # above any cosine


@dataclass(frozen=True)
class Choice:
    """A frame that becomes a keyframe; with a `cut`, a new shot begins with it."""

    frame: Frame
    cut: bool = False


Chosen = AsyncGenerator[tuple[list[Choice], bool], None]
"""Newly chosen frames, maybe none, and whether these are the last."""


async def batched(frames: AsyncIterable[Frame], size: int) -> AsyncGenerator[tuple[list[Frame], bool], None]:
    """Yield all frames that are there by now, at least one and at most `size`, and whether the last is among them.

    One frame is always held back until the next one, or the end, is known.
    """
    queue: asyncio.Queue[Frame | Exception | None] = asyncio.Queue(maxsize=size)

    async def read() -> None:
        try:
            async for frame in frames:
                await queue.put(frame)
            await queue.put(None)
        except Exception as error:  # handed on to whoever reads the queue
            await queue.put(error)

    async def take() -> Frame | None:
        item = await queue.get()
        if isinstance(item, Exception):
            raise item
        return item

    reader = asyncio.create_task(read())
    try:
        batch: list[Frame] = []
        held = await take()
        while held is not None:
            following = await take()
            batch.append(held)
            held = following
            if held is None or queue.empty() or len(batch) == size:
                yield batch, held is None
                batch = []
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)


async def every(frames: AsyncIterable[Frame]) -> Chosen:
    """Choose all samples."""
    async with aclosing(batched(frames, BATCH)) as batches:
        async for batch, last in batches:
            yield [Choice(frame) for frame in batch], last


async def semantic(
    frames: AsyncIterable[Frame], encoder: FrameEncoder, threshold: float, cut_threshold: float = NO_CUT
) -> Chosen:
    """Choose the first sample, each one whose cosine with the latest choice is below `threshold`, and the last.

    A cosine below `cut_threshold` is a cut.
    """
    latest, newest = None, None
    async with aclosing(batched(frames, BATCH)) as batches:
        async for batch, last in batches:
            chosen: list[Choice] = []
            for frame, feature in zip(batch, await encoder.encode([f.image for f in batch]), strict=True):
                likeness: float | None = None if latest is None else float(latest @ feature)
                if likeness is None or likeness < threshold:
                    latest, newest = feature, frame
                    chosen.append(Choice(frame, cut=likeness is not None and likeness < cut_threshold))
            if last and newest is not batch[-1]:
                chosen.append(Choice(batch[-1]))
            yield chosen, last


class KeyframeLog:
    """The keyframes of a job as they are found: filled by selection, read by captioning at its own pace."""

    def __init__(self, found: list[Keyframe], complete: bool) -> None:
        self.found = found
        self.complete = complete
        self._error: BaseException | None = None
        self._changed = asyncio.Event()

    def add(self, keyframes: list[Keyframe], complete: bool) -> None:
        self.found += keyframes
        self.complete = complete
        self._wake()

    def fail(self, error: BaseException) -> None:
        """Let readers meet `error` instead of the next keyframe."""
        self._error = error
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def has(self, index: int) -> bool:
        """Wait for keyframe `index`; return whether it was found."""
        while len(self.found) <= index and not self.complete and self._error is None:
            await self._changed.wait()
        return index < len(self.found)

    async def get(self, index: int) -> Keyframe | None:
        """Return keyframe `index` as soon as it is found, None if there are not so many."""
        if await self.has(index):
            return self.found[index]
        if self._error is not None:
            raise self._error
        return None

    async def shots(self) -> AsyncGenerator[int, None]:
        """Yield the place of each shot's first keyframe as it is found: 0, whatever is found, and then each cut's."""
        yield 0
        index = 1
        while await self.has(index):
            if self.found[index].shot != self.found[index - 1].shot:
                yield index
            index += 1

    async def all(self) -> list[Keyframe]:
        """Return all keyframes once the last is found."""
        while await self.get(len(self.found)) is not None:
            pass
        return self.found


@asynccontextmanager
async def selecting(attempt: Attempt, options: VideoOptions) -> AsyncIterator[KeyframeLog]:
    """Give the job's keyframes; where some are still missing, a task goes on finding them meanwhile."""
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
        async with attempt.context.decoders:
            info = await probe(attempt.upload, attempt.context.settings.video_limits)
            async with open_frames(attempt.upload, info, _part(attempt, options), attempt.context.decode_limits) as frames:
                await _tell_video(attempt, info, frames)
                with attempt.timed("keyframes"):
                    await _choose(attempt, options, log, frames)
    except FileNotFoundError:
        log.fail(NotFound("The video is not there any more."))
    except Exception as error:  # captioning meets it when it asks for the next keyframe
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


async def _tell_video(attempt: Attempt, info: VideoInfo, frames: Frames) -> None:
    if attempt.job.interval_s is not None:
        return
    width, height = info.shown_size
    await attempt.events.append(
        Video(
            duration_s=frames.duration_s if info.duration_s is None else info.duration_s,
            width=width,
            height=height,
            fps=info.fps or frames.fps,
            interval_s=frames.interval_s,
            bytes=attempt.fetched.bytes if attempt.fetched else None,
            sha256=attempt.fetched.sha256 if attempt.fetched else None,
        )
    )


async def _choose(attempt: Attempt, options: VideoOptions, log: KeyframeLog, frames: Frames) -> None:
    """Save, tell and log the keyframes among `frames`."""
    known = bool(log.found)  # then the first frame is the latest keyframe of an earlier attempt
    async with aclosing(_choices(attempt, options, frames)) as choices:
        async for chosen, last in choices:
            new: list[Keyframe] = []
            for choice in chosen[known:]:
                new.append(await _save(attempt, [*log.found[-1:], *new], choice))
            known = False
            attempt.timings.decode = frames.read_s
            if new or last:
                await attempt.events.append(Keyframes(keyframes=new, complete=last))
                if last:
                    attempt.remove_upload()
                log.add(new, last)


def _choices(attempt: Attempt, options: VideoOptions, frames: Frames) -> Chosen:
    """Return the selection that the job asks for."""
    context = attempt.context
    if options.keyframes == "interval" and not options.parallel:
        return every(frames)
    threshold = options.similarity_threshold
    if threshold is None:
        threshold = context.captioner.defaults.similarity_threshold
    cut_threshold = NO_CUT
    if options.parallel:
        cut_threshold = 1 - CUT_FACTOR * (1 - threshold) if options.cut_threshold is None else options.cut_threshold
    return semantic(
        frames, context.encoder, EVERY_SAMPLE if options.keyframes == "interval" else threshold, cut_threshold
    )


async def _save(attempt: Attempt, before: list[Keyframe], choice: Choice) -> Keyframe:
    """Write the JPEG of the keyframe that follows those `before`; return what the job says of it."""
    index, shot = (before[-1].index + 1, before[-1].shot + choice.cut) if before else (0, 0)
    await asyncio.to_thread(_write_jpeg, attempt.keyframe_file(index), choice.frame.image)
    return Keyframe(index=index, time_s=choice.frame.time_s, shot=shot)


def _write_jpeg(path: Path, image: Image.Image) -> None:
    with storing():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            image.save(file, "JPEG", quality=JPEG_QUALITY, subsampling=FULL_CHROMA)
            file.flush()
            os.fsync(file.fileno())
        sync_names(path.parent)


async def read_keyframe(attempt: Attempt, keyframe: Keyframe) -> Image.Image:
    """Return the keyframe's pixels, RGB, as its JPEG holds them."""

    def read() -> Image.Image:
        with Image.open(attempt.keyframe_file(keyframe.index)) as image:
            return image.convert("RGB")

    return await asyncio.to_thread(read)
