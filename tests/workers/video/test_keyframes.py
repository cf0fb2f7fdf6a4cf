"""Which frames become keyframes, in which shot and at which times; times are those that a player shows."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import av
import pytest
from PIL import Image

from service.contract.jobs import JobState
from service.contract.storage.local import keyframe_path
from tests.fake_captioner import FakeCaptioner, FakeEncoder
from tests.workers.clips import delayed, number_of, numbered, rotate, trimmed, write
from tests.workers.conftest import Bench
from tests.workers.roles.test_sliding import shot
from workers.models.engine import Features
from workers.video.frames import Frame
from workers.video.selection import select_by_similarity


async def keyframes(bench: Bench, path: Path, **options: object) -> tuple[JobState, list[Image.Image]]:
    """Run a job. Returns it and its keyframes, read from their files."""
    job = await bench.run(bench.runner(FakeCaptioner()), await bench.video(path, **options))
    assert job.error is None, job.error
    images = []
    for keyframe in job.keyframes:
        with Image.open(keyframe_path(bench.data_dir, job.id, keyframe.index)) as image:
            images.append(image.copy())
    return job, images


def check(job: JobState, images: list[Image.Image], times_s: list[float], numbers: list[int]) -> None:
    assert [k.time_s for k in job.keyframes] == pytest.approx(times_s, abs=2e-3)
    assert [number_of(image) for image in images] == numbers
    assert [d.time_s for d in job.differentials] == [k.time_s for k in job.keyframes]


EVERY_SECOND = {"keyframes": "interval", "interval_s": 1.0}


@pytest.mark.parametrize("b_frames", ["0", "3"])
async def test_an_edit_list_that_trims_the_beginning(bench: Bench, tmp_path: Path, b_frames: str) -> None:
    whole = write(tmp_path / "whole.mp4", [numbered(k) for k in range(100)], bf=b_frames)
    job, images = await keyframes(bench, trimmed(whole, tmp_path / "clip.mp4", 1.2), **EVERY_SECOND)
    check(job, images, [0, 1, 2, 2.76], [30, 55, 80, 99])
    assert job.source is not None
    assert job.source.duration_s == pytest.approx(2.8, abs=0.01)


@pytest.mark.parametrize("b_frames", ["0", "3"])
async def test_an_edit_list_that_delays_the_beginning(bench: Bench, tmp_path: Path, b_frames: str) -> None:
    whole = write(tmp_path / "whole.mp4", [numbered(k) for k in range(50)], bf=b_frames)
    job, images = await keyframes(bench, delayed(whole, tmp_path / "clip.mp4", 0.6), **EVERY_SECOND)
    check(job, images, [0, 1, 1.96], [0, 25, 49])  # the container starts with its first frame


async def test_a_variable_frame_rate(bench: Bench, tmp_path: Path) -> None:
    shown_at = [0, 0.05, 0.4, 0.9, 1.7, 1.75, 1.8, 3.3, 4.0]
    path = write(tmp_path / "clip.mp4", [numbered(k) for k in range(9)], times_s=shown_at)
    job, images = await keyframes(bench, path, **EVERY_SECOND)
    check(job, images, [0, 0.9, 1.8, 4.0], [0, 3, 6, 8])  # on screen at 0, 1, 2, 3 (the same frame) and 4


async def test_a_rotated_video_is_upright(bench: Bench, tmp_path: Path) -> None:
    upright = write(tmp_path / "upright.mp4", [numbered(k) for k in range(40)])
    job, images = await keyframes(bench, rotate(upright, tmp_path / "clip.mp4"), **EVERY_SECOND)
    assert job.source is not None
    assert (job.source.width, job.source.height) == images[0].size == (120, 160)
    check(job, [image.transpose(Image.Transpose.ROTATE_90) for image in images], [0, 1, 1.56], [0, 25, 39])


async def test_semantic_keyframes_have_the_containers_times(bench: Bench, tmp_path: Path) -> None:
    shown_at = [0, 0.3, 0.9, 1.1, 2.0, 2.2, 3.7, 4.4]
    frames = [shot(k // 3, 0) for k in range(8)]  # changes at 1.1 and 3.7 s
    path = write(tmp_path / "clip.mp4", frames, times_s=shown_at)
    job, _ = await keyframes(bench, path, interval_s=0.1, similarity_threshold=0.9)
    assert [k.time_s for k in job.keyframes] == pytest.approx([0, 1.1, 3.7, 4.4], abs=2e-3)


class GatedEncoder(FakeEncoder):
    """Encodes at least `frames` frames, then blocks."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self._frames = frames

    async def encode(self, images: Sequence[Image.Image]) -> Features:
        if sum(self.batches) >= self._frames:
            await asyncio.Event().wait()
        return await super().encode(images)


async def test_the_next_attempt_continues_the_shot_numbers(bench: Bench, tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4", [shot(k // 10 % 4, k % 10 // 5) for k in range(80)], fps=10)
    options = {"interval_s": 0.1, "similarity_threshold": 0.99, "parallel": True}
    whole = await bench.run(bench.runner(FakeCaptioner()), await bench.video(path, **options))
    assert [k.shot for k in whole.keyframes] == sorted([*range(8), *range(8), 7])
    job_id = await bench.video(path, **options)
    first = bench.runner(FakeCaptioner(), encoder=GatedEncoder(30))
    await asyncio.to_thread(first.run_job, job_id)
    half = await bench.until(job_id, lambda job: len(job.keyframes) >= 4)
    await first.stop(0)
    job = await bench.run(bench.runner(FakeCaptioner()), job_id)
    assert len(half.keyframes) < len(job.keyframes)
    assert [(k.time_s, k.shot) for k in job.keyframes] == [(k.time_s, k.shot) for k in whole.keyframes]


async def test_selection_does_not_wait_for_later_frames() -> None:
    async def endless() -> AsyncIterator[Frame]:
        for k in range(3):
            yield Frame(float(k), Image.fromarray(shot(k, 0)))
        await asyncio.Event().wait()

    batches = select_by_similarity(endless(), FakeEncoder(), 0.9)
    async with asyncio.timeout(5):
        batch = await anext(batches)
    assert [selected.frame.time_s for selected in batch.frames] == [0, 1] and not batch.is_last
    await batches.aclose()


def repeated(source: Path, target: Path, times: int) -> Path:
    """Copy a video without B-frames, repeated `times` times."""
    with av.open(str(source)) as read:
        packets = [packet for packet in read.demux(video=0) if packet.size]
        with av.open(str(target), "w") as out:
            stream = out.add_stream_from_template(read.streams.video[0])
            places = [(packet.pts or 0, packet.duration or 0) for packet in packets]
            length = sum(duration for _, duration in places)
            for time_ in range(times):
                for packet, (pts, _) in zip(packets, places, strict=True):
                    packet.pts = packet.dts = pts + time_ * length
                    packet.stream = stream
                    out.mux(packet)
    return target


async def test_the_first_caption_of_a_long_video_comes_as_early_as_that_of_a_short_one(
    bench: Bench, tmp_path: Path
) -> None:
    minute = write(tmp_path / "minute.mp4", [numbered(k, (64, 48)) for k in range(60)], fps=1, bf="0")
    runner, took_s = bench.runner(FakeCaptioner(delay_s=0.01)), []
    for seconds in (120, 7200):
        clip = repeated(minute, tmp_path / f"{seconds}.mp4", seconds // 60)
        job_id = await bench.video(clip, keyframes="interval")
        start = time.monotonic()
        await asyncio.to_thread(runner.run_job, job_id)
        job = await bench.until(job_id, lambda job: bool(job.differentials))
        took_s.append(time.monotonic() - start)
        assert len(job.keyframes) < 1000, "the first caption must not wait for the end of the video"
        await bench.store.cancel(job_id)
        await bench.ended(job_id)
    assert took_s[1] < 2 * took_s[0] + 5.0
