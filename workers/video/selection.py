"""Selects keyframes among the samples (by similarity, or all) and detects shot boundaries."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing
from dataclasses import dataclass

from service.contract.jobs import VideoOptions
from workers.models.engine import FrameEncoder
from workers.video.frames import Frame

BATCH = 8
CUT_FACTOR = 4.0
"""Default cut threshold: 1 - CUT_FACTOR * (1 - similarity_threshold), which is 0.72 for 0.93."""
NO_CUT = -2.0
"""A cut threshold below any cosine."""
EVERY_SAMPLE = 2.0
"""A similarity threshold above any cosine."""


@dataclass(frozen=True)
class SelectedFrame:
    """A frame that becomes a keyframe. `starts_shot`: a new shot begins with it."""

    frame: Frame
    starts_shot: bool = False


@dataclass(frozen=True)
class SelectedBatch:
    """Newly selected frames, possibly none. `is_last`: no more will follow."""

    frames: list[SelectedFrame]
    is_last: bool


Selection = AsyncGenerator[SelectedBatch, None]


def select(frames: AsyncIterable[Frame], options: VideoOptions, encoder: FrameEncoder, threshold: float) -> Selection:
    """Return the selection that a job's options ask for. `threshold` is the default similarity threshold."""
    every_sample = options.keyframes == "interval"
    if every_sample and not options.parallel:
        return select_all(frames)
    if options.similarity_threshold is not None:
        threshold = options.similarity_threshold
    cut_threshold = NO_CUT
    if options.parallel:
        cut_threshold = 1 - CUT_FACTOR * (1 - threshold) if options.cut_threshold is None else options.cut_threshold
    return select_by_similarity(frames, encoder, EVERY_SAMPLE if every_sample else threshold, cut_threshold)


async def select_all(frames: AsyncIterable[Frame]) -> Selection:
    """Select every sampled frame."""
    async with aclosing(batched(frames, BATCH)) as batches:
        async for batch, is_last in batches:
            yield SelectedBatch([SelectedFrame(frame) for frame in batch], is_last)


async def select_by_similarity(
    frames: AsyncIterable[Frame], encoder: FrameEncoder, threshold: float, cut_threshold: float = NO_CUT
) -> Selection:
    """Select the first frame, each frame whose cosine with the previously selected one is below `threshold`, and the
    last frame. A frame whose cosine is below `cut_threshold` starts a new shot.
    """
    previous_feature, previous_frame = None, None
    async with aclosing(batched(frames, BATCH)) as batches:
        async for batch, is_last in batches:
            selected: list[SelectedFrame] = []
            for frame, feature in zip(batch, await encoder.encode([f.image for f in batch]), strict=True):
                cosine: float | None = None if previous_feature is None else float(previous_feature @ feature)
                if cosine is None or cosine < threshold:
                    previous_feature, previous_frame = feature, frame
                    selected.append(SelectedFrame(frame, starts_shot=cosine is not None and cosine < cut_threshold))
            if is_last and previous_frame is not batch[-1]:
                selected.append(SelectedFrame(batch[-1]))
            yield SelectedBatch(selected, is_last)


async def batched(frames: AsyncIterable[Frame], size: int) -> AsyncGenerator[tuple[list[Frame], bool], None]:
    """Yield the frames that are available, at least one and at most `size`, and whether the last one is among them.

    One frame is always held back until the next frame or the end is known.
    """
    queue: asyncio.Queue[Frame | Exception | None] = asyncio.Queue(maxsize=size)

    async def read() -> None:
        try:
            async for frame in frames:
                await queue.put(frame)
            await queue.put(None)
        except Exception as error:  # raised again by `take`
            await queue.put(error)

    async def take() -> Frame | None:
        item = await queue.get()
        if isinstance(item, Exception):
            raise item
        return item

    reader = asyncio.create_task(read())
    try:
        batch: list[Frame] = []
        held_back = await take()
        while held_back is not None:
            following = await take()
            batch.append(held_back)
            held_back = following
            if held_back is None or queue.empty() or len(batch) == size:
                yield batch, held_back is None
                batch = []
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
