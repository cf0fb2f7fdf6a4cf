"""Sampling real video files: the right frame at the right time, for every container and codec."""

import asyncio
from contextlib import aclosing, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from service.contract.errors import DecodeFailed, DecoderKilled, InvalidOption, NotAVideo
from service.contract.sandbox.probe import VideoInfo, probe
from tests.workers.clips import number_of, numbered, polyglot, rotate, write
from workers.video.decoding import stream
from workers.video.frames import CHILD, DecodeLimits, Frame, Part, open_frames
from workers.video.sampling import plan_samples


async def sample(path: Path, limits: DecodeLimits | None = None, **part: float | None) -> tuple[list[Frame], float]:
    """Return the samples of `path` and the sampling interval used."""
    requested = Part(**{"interval_s": 2.0, "max_samples": 1000, **part})  # type: ignore[arg-type]
    async with open_frames(path, await probe(path), requested, limits or DecodeLimits()) as frames:
        return [frame async for frame in frames], frames.interval_s


def decoders() -> list[psutil.Process]:
    """Return the decode children of this process, which also has other children."""
    children = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if child.name() == CHILD.name:
                children.append(child)
    return children


def times(frames: list[Frame]) -> list[float]:
    return [frame.time_s for frame in frames]


CLOSED = {"sc_threshold": "0", "bf": "3"}
OPEN = {"x264-params": "open-gop=1:bframes=3:scenecut=0:log-level=none"}


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("closed.mp4", "h264", CLOSED),
        ("closed.mkv", "h264", CLOSED),
        ("open.mp4", "h264", OPEN),
        ("open.mkv", "h264", OPEN),
        ("hevc.mp4", "libx265", {"x265-params": "log-level=none"}),
        ("stream.ts", "h264", CLOSED),
        ("old.avi", "mpeg4", {}),
        ("vp9.webm", "libvpx-vp9", {"cpu-used": "8", "deadline": "realtime"}),
    ],
)
async def test_each_sample_is_the_frame_on_screen_at_its_time(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    path = write(tmp_path / name, [numbered(k) for k in range(200)], codec=codec, **options)
    for interval_s in (0.44, 1.9):
        frames, _ = await sample(path, interval_s=interval_s)
        expected = sorted({*(int(k * interval_s * 25 + 1e-6) for k in range(int(7.96 / interval_s) + 1)), 199})
        assert [number_of(frame.image) for frame in frames] == expected
        assert times(frames) == pytest.approx([number / 25 for number in expected], abs=1e-3)


async def test_a_long_video_is_sampled_with_several_threads(tmp_path: Path) -> None:
    path = write(tmp_path / "long.mp4", [numbered(k % 200) for k in range(300)], **CLOSED)
    frames, _ = await sample(path, interval_s=1.12)
    expected = [*range(0, 300, 28), 299]
    assert times(frames) == pytest.approx([number / 25 for number in expected], abs=1e-3)
    assert [number_of(frame.image) for frame in frames] == [number % 200 for number in expected]


async def test_a_variable_frame_rate_is_sampled_by_time(tmp_path: Path) -> None:
    shown_at = np.cumsum([0.0, *np.random.default_rng(3).uniform(0.01, 0.9, 60)]).round(3)
    path = write(tmp_path / "vfr.mp4", [numbered(k) for k in range(61)], times_s=list(shown_at))
    frames, _ = await sample(path, interval_s=1.0)
    for k, frame in enumerate(frames[:-1]):
        expected = int(np.searchsorted(shown_at, k + 1e-3, side="right")) - 1
        assert (number_of(frame.image), frame.time_s) == (expected, pytest.approx(shown_at[expected], abs=2e-3))
    assert number_of(frames[-1].image) == 60


async def test_a_frame_shown_for_several_intervals_is_sampled_once(tmp_path: Path) -> None:
    path = write(tmp_path / "slides.mp4", [numbered(k) for k in range(3)], times_s=[0, 10, 20])
    frames, _ = await sample(path)
    assert [number_of(frame.image) for frame in frames] == [0, 1, 2]
    assert times(frames) == [0, 10, 20]


async def test_rotation_is_applied(tmp_path: Path) -> None:
    upright = write(tmp_path / "a.mp4", [numbered(k) for k in range(30)])
    frames, _ = await sample(rotate(upright, tmp_path / "b.mp4"))
    expected = np.rot90(numbered(29), -1).astype(int)
    assert frames[-1].image.size == (120, 160)
    assert np.abs(np.asarray(frames[-1].image).astype(int) - expected).mean() < 12


async def test_rotation_is_applied_with_open_groups_of_pictures(tmp_path: Path) -> None:
    upright = write(tmp_path / "a.mp4", [numbered(k) for k in range(60)], **OPEN)
    frames, _ = await sample(rotate(upright, tmp_path / "b.mp4"))
    assert np.abs(np.asarray(frames[-1].image).astype(int) - np.rot90(numbered(59), -1)).mean() < 12


@pytest.mark.parametrize("count", [1, 2, 20])
async def test_a_video_shorter_than_one_interval_has_its_first_and_last_frame(tmp_path: Path, count: int) -> None:
    path = write(tmp_path / "short.mp4", [numbered(k) for k in range(count)])
    frames, _ = await sample(path)
    assert [number_of(frame.image) for frame in frames] == sorted({0, count - 1})


@pytest.mark.parametrize("width", [16, 24, 72])
async def test_narrow_frames(tmp_path: Path, width: int) -> None:
    drawn = np.zeros((48, width, 3), np.uint8)
    drawn[:, : width // 2] = (200, 40, 40)
    frames, _ = await sample(write(tmp_path / "narrow.mp4", [drawn] * 3))
    assert [frame.image.size for frame in frames] == [(width, 48)] * 2
    assert all(np.abs(np.asarray(frame.image).astype(int) - drawn).mean() < 12 for frame in frames)


async def test_odd_sizes_and_large_frames(tmp_path: Path) -> None:
    odd, _ = await sample(write(tmp_path / "odd.mkv", [numbered(5, (162, 90))] * 3, codec="libvpx-vp9"))
    assert odd[0].image.size == (162, 90)
    tall, _ = await sample(write(tmp_path / "tall.mp4", [numbered(9, (720, 1280))] * 2))
    assert tall[0].image.size == (576, 1024)
    assert number_of(tall[0].image) == 9


async def test_a_part(tmp_path: Path) -> None:
    path = write(tmp_path / "part.mp4", [numbered(k) for k in range(250)])
    frames, _ = await sample(path, start_s=3.0, end_s=7.5)
    assert times(frames) == [3.0, 5.0, 7.0, 7.48]
    resumed, _ = await sample(path, start_s=3.0, end_s=7.5, from_s=5.0)
    assert times(resumed) == [5.0, 7.0, 7.48]
    late, _ = await sample(path, end_s=100.0, start_s=9.96)
    assert times(late) == [9.96]
    with pytest.raises(InvalidOption, match=r"lasts 10\.00 s"):
        await sample(path, start_s=30.0)


async def test_a_blank_start_is_skipped(tmp_path: Path) -> None:
    blank = np.full((120, 160, 3), 16, np.uint8)

    async def sampled_times(blanks: int, total: int = 100) -> list[float]:
        drawn = [blank] * blanks + [numbered(k) for k in range(blanks, total)]
        return times((await sample(write(tmp_path / f"{blanks}-{total}.mp4", drawn)))[0])

    assert await sampled_times(0) == [0, 2, 3.96]
    assert await sampled_times(10) == [0.4, 2, 3.96]
    assert await sampled_times(50) == [2, 3.96]
    assert (await sampled_times(75))[0] == 0, "at most one interval is skipped"
    assert await sampled_times(20, 20) == [0, 0.76], "a video of one colour"


@pytest.mark.parametrize(("max_samples", "count"), [(1, 1), (2, 2), (5, 5), (10, 10), (11, 11), (50, 11)])
async def test_the_interval_is_increased_to_respect_max_samples(tmp_path: Path, max_samples: int, count: int) -> None:
    path = write(tmp_path / "long.mp4", [numbered(k) for k in range(201)], fps=10)
    frames, interval_s = await sample(path, max_samples=max_samples)
    assert len(frames) == count
    assert times(frames)[0] == 0
    assert max_samples == 1 or times(frames)[-1] == 20
    assert interval_s == (2.0 if max_samples == 1 or max_samples >= 11 else pytest.approx(20 / (max_samples - 1)))


def test_a_plan_never_exceeds_max_samples() -> None:
    random = np.random.default_rng(0)
    for _ in range(500):
        seconds = np.unique(np.cumsum(random.uniform(0.001, 3, random.integers(1, 300))))
        max_samples, interval_s = int(random.integers(1, 40)), float(random.uniform(0.1, 60))
        numbers, interval_used_s = plan_samples(seconds, interval_s, max_samples)
        assert 1 <= len(numbers) <= max_samples
        assert interval_used_s >= interval_s
        assert numbers == sorted(set(numbers))
        assert numbers[0] == 0
        assert max_samples == 1 or numbers[-1] == len(seconds) - 1


async def test_a_truncated_video_is_decoded_as_far_as_possible(tmp_path: Path) -> None:
    path = write(tmp_path / "whole.mkv", [numbered(k) for k in range(200)])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    frames, _ = await sample(path)
    assert 1 < len(frames) < 5, "the intact part is decoded"
    assert times(frames) == sorted(times(frames))


async def test_a_killed_or_stalled_child_fails_the_decoding(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4", [numbered(k) for k in range(200)])
    part = Part(interval_s=0.1, max_samples=1000)
    async with open_frames(path, await probe(path), part, DecodeLimits()) as frames:
        with pytest.raises(DecoderKilled, match="ran out of memory"):
            async for _ in frames:
                for child in decoders():
                    child.kill()
    with pytest.raises(DecodeFailed, match="too long"):
        await sample(path, DecodeLimits(stall_s=0.01))
    assert not decoders(), "all children are gone"


async def test_closing_early_releases_all_resources(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4", [numbered(k, (640, 480)) for k in range(200)])
    part, info, process = Part(interval_s=0.1, max_samples=1000), await probe(path), psutil.Process()
    before = None
    for _ in range(4):
        async with open_frames(path, info, part, DecodeLimits()) as frames, aclosing(aiter(frames)) as samples:
            await anext(samples)
            await asyncio.sleep(0.3)  # the pipe is full now
        before = before or process.num_fds()
    assert process.num_fds() == before
    assert not decoders()


async def test_the_child_is_confined(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4", [numbered(k, (640, 480)) for k in range(200)])
    part = Part(interval_s=0.1, max_samples=1000)
    async with open_frames(path, await probe(path), part, DecodeLimits()) as frames:
        async for _ in frames:
            [child] = decoders()
            assert not set(child.environ()) - {"PATH", "LC_CTYPE", "OPENBLAS_NUM_THREADS"}
            assert not child.net_connections()
            limits = {name: child.rlimit(getattr(psutil, f"RLIMIT_{name}"))[1] for name in ("AS", "FSIZE", "CORE")}
            assert limits == {"AS": 2 << 30, "FSIZE": 0, "CORE": 0}
            break


async def test_the_child_itself_refuses_other_codecs(tmp_path: Path) -> None:
    """The probe refuses this file too; here the child gets it with the claim that it is H.264."""
    path = write(tmp_path / "lossless.mkv", [numbered(k) for k in range(3)], codec="ffv1")
    info = VideoInfo(container="matroska", codec="h264", width=160, height=120)
    with pytest.raises(stream.CodecRefused, match="ffv1"):
        stream.File(str(path), info.container, info.codec)
    with pytest.raises(DecodeFailed, match="ended early"):
        async with open_frames(path, info, Part(interval_s=2.0, max_samples=10), DecodeLimits()):
            pass
    assert not decoders()


@pytest.fixture
def mp4_and_avi(tmp_path: Path) -> Path:
    """A file that shows the frames 0, 1, 2 to an MP4 reader and 100, 101, 102 in MagicYUV to an AVI reader."""
    mp4 = write(tmp_path / "a.mp4", [numbered(k) for k in range(3)])
    avi = write(tmp_path / "a.avi", [numbered(k) for k in range(100, 103)], codec="magicyuv")
    return polyglot(tmp_path / "both.mp4", mp4, avi)


async def test_a_file_of_two_containers_is_refused(mp4_and_avi: Path) -> None:
    with pytest.raises(NotAVideo):
        await probe(mp4_and_avi)


async def test_a_file_is_decoded_only_as_what_was_probed(mp4_and_avi: Path) -> None:
    part = Part(interval_s=0.04, max_samples=10)
    as_mp4 = VideoInfo(container="mov", codec="h264", width=160, height=120)
    async with open_frames(mp4_and_avi, as_mp4, part, DecodeLimits()) as frames:
        assert [number_of(frame.image) async for frame in frames] == [0, 1, 2]
    as_avi = VideoInfo(container="avi", codec="h264", width=160, height=120)
    with pytest.raises(DecodeFailed, match="ended early"):
        async with open_frames(mp4_and_avi, as_avi, part, DecodeLimits()):
            pass


LINE = '{"interval_s": 1, "samples": 1, "duration_s": 1, "fps": 1}'


@pytest.mark.parametrize(
    "output",
    [
        "print('[]')",
        "print('{}')",
        f"print({LINE!r}.replace('1,', 'NaN,'))",
        "print('{' * 10_000_000)",
        f"print({LINE!r}); out(pack('<dII', 0.0, 1 << 31, 1))",
        f"print({LINE!r}); out(pack('<dII', float('nan'), 1, 1) + bytes(3))",
        f"print({LINE!r}); out(pack('<dII', 0.0, 2, 2) + bytes(3))",
    ],
)
async def test_a_child_that_writes_nonsense_fails_the_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    child = tmp_path / "child.py"
    child.write_text(f"""
import sys
from struct import pack
def out(data): sys.stdout.flush(); sys.stdout.buffer.write(data)
{output}""")
    monkeypatch.setattr("workers.video.frames.CHILD", child)
    info = VideoInfo(container="mov", codec="h264", width=160, height=120)
    with pytest.raises(DecodeFailed):
        async with open_frames(child, info, Part(interval_s=1.0, max_samples=10), DecodeLimits()) as frames:
            assert not [frame async for frame in frames]
