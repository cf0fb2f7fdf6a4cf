"""Every sample of every clip is the very frame that a viewer sees at its time. The real confined children decode it."""

from pathlib import Path

import pytest

from service.contract.sandbox.probe import probe
from service.contract.sandbox.subprocesses import ChildStarter
from tests.media.clips import CLIPS, Clip, Shown
from tests.workers.clips import number_of
from workers.video.frames import DecodeLimits, Part, open_frames
from workers.video.keyframes import duration_s, fps

EVERY_FRAME_S = 0.001
SEEKING_S = 0.28
TIME_ERROR_S = 0.0006
"""Less than the coarsest clock of a container, which counts milliseconds and may round."""


async def samples(path: Path, interval_s: float, starter: ChildStarter) -> Shown:
    """Return the number that each sample shows, and its time in seconds."""
    part, info = Part(interval_s=interval_s, max_samples=1000), await probe(path, starter=starter)
    async with open_frames(path, info, part, DecodeLimits(), starter) as frames:
        return tuple([(number_of(frame.image), frame.time_s) async for frame in frames])


def on_screen(shown: Shown, interval_s: float) -> Shown:
    """Return what a viewer sees at the first frame and every `interval_s` after it, and the last frame."""
    first_s, last_s = shown[0][1], shown[-1][1]
    moments = [first_s + k * interval_s for k in range(int((last_s - first_s) / interval_s) + 1)]
    seen = {max(pair for pair in shown if pair[1] <= moment + 1e-6) for moment in moments}
    return tuple(sorted({*seen, shown[-1]}))


def check(samples: Shown, expected: Shown) -> None:
    """Check that the samples are the expected frames at the expected times."""
    assert [number for number, _ in samples] == [number for number, _ in expected]
    assert [time_s for _, time_s in samples] == pytest.approx([time_s for _, time_s in expected], abs=TIME_ERROR_S)


def readable(clip: Clip, samples: Shown) -> Shown:
    """Return the part of the clip that must be in `samples`: all of it; if it was cut, what can still be read."""
    if not clip.is_cut:
        return clip.shown
    assert len(samples) >= 3
    return tuple(pair for pair in clip.shown if pair[0] in dict(samples))


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: clip.name)
async def test_each_frame_has_its_time(clip: Clip, tmp_path: Path, starter: ChildStarter) -> None:
    if not clip.is_possible:
        pytest.skip(f"needs the ffmpeg program with {clip.encoder}: PyAV cannot encode {clip.how.codec} in this way")
    path = clip.write(tmp_path)
    every = await samples(path, EVERY_FRAME_S, starter)
    shown = readable(clip, every)
    check(every, shown)
    check(await samples(path, SEEKING_S, starter), on_screen(shown, SEEKING_S))


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("name", "seconds", "rate"),
    [("h264.mkv", 1.2, 25), ("mpeg2.mpg", 1.2, 25), ("fast-clock.mkv", 2, 5.5), ("short-delays.gif", 1.4, 3.7)],
)
async def test_duration_and_rate_fit_the_frames(
    name: str, seconds: float, rate: float, tmp_path: Path, starter: ChildStarter
) -> None:
    path = next(clip for clip in CLIPS if clip.name == name).write(tmp_path)
    info = await probe(path, starter=starter)
    async with open_frames(path, info, Part(interval_s=1, max_samples=1), DecodeLimits(), starter) as frames:
        assert (duration_s(info, frames), fps(info, frames)) == pytest.approx((seconds, rate), abs=0.06)
