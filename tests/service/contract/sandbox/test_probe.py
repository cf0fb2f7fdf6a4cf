"""The probe: real files of every accepted kind, and of many kinds that are refused."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from service.contract.errors import DecoderKilled, NotAVideo, UnsupportedMedia, VideoTooLarge, VideoTooLong
from service.contract.sandbox import probe as module
from service.contract.sandbox.formats import EXCLUDED_FORMATS
from service.contract.sandbox.probe import NoSandbox, VideoLimits, check_sandbox, probe
from tests.conftest import needs_worker


@pytest.mark.parametrize(
    "case",
    [
        ("a.mp4", "h264", "h264", "mov"),
        ("a.mov", "hevc", "hevc", "mov"),
        ("a.mkv", "h264", "h264", "matroska"),
        ("a.webm", "libvpx", "vp8", "matroska"),
        ("b.webm", "libvpx-vp9", "vp9", "matroska"),
        ("c.webm", "libsvtav1", "av1", "matroska"),
        ("a.avi", "mpeg4", "mpeg4", "avi"),
        ("a.ts", "h264", "h264", "mpegts"),
    ],
)
async def test_accepted_containers_and_codecs(tmp_path, make_clip, case) -> None:
    name, encoder, codec, container = case
    info = await probe(make_clip(tmp_path / name, 1.0, 10, (160, 120), codec=encoder))
    assert (info.codec, info.container, info.width, info.height, info.rotation) == (codec, container, 160, 120, 0)
    assert info.fps == pytest.approx(10)
    assert info.duration_s == pytest.approx(1.0, abs=0.15)


async def test_the_file_name_is_ignored(tmp_path, make_clip) -> None:
    info = await probe(make_clip(tmp_path / "video.txt", 0.5, container="mp4"))
    assert info.codec == "h264"


async def test_a_video_with_sound_is_accepted(tmp_path, make_clip) -> None:
    info = await probe(make_clip(tmp_path / "a.mp4", 1.0, audio=True))
    assert (info.streams, info.codec) == (2, "h264")


async def test_rotation_is_reported(tmp_path) -> None:
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("h264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        stream.set_display_rotation(-90)
        for _ in range(3):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((120, 160, 3), np.uint8), format="rgb24")))
        out.mux(stream.encode())
    info = await probe(path)
    assert (info.width, info.height, info.shown_size) == (160, 120, (120, 160))
    assert info.rotation == 90


NOT_VIDEOS = {
    "empty": b"",
    "text": b"Once upon a time there was a video.\n" * 50,
    "playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n",
    "concat": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "mp4 in name only": b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2" + b"\xff" * 5000,
    "matroska in name only": b"\x1aE\xdf\xa3" + b"\x00" * 5000,
    "a wave file": b"RIFF\x24\x00\x00\x00WAVEfmt " + b"\x00" * 100,
    "one byte": b"\x00",
}


@pytest.mark.parametrize("name", NOT_VIDEOS)
async def test_files_that_are_not_videos_are_refused(tmp_path, name) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(NOT_VIDEOS[name])
    with pytest.raises(NotAVideo):
        await probe(path)


async def test_a_file_with_only_sound_is_refused(tmp_path, make_clip) -> None:
    with pytest.raises(NotAVideo, match="no video stream"):
        await probe(make_clip(tmp_path / "a.mp4", 1.0, video=False))


async def test_a_truncated_file_is_refused(tmp_path, clip) -> None:
    path = tmp_path / "cut.mp4"
    path.write_bytes(clip.read_bytes()[:-600])
    with pytest.raises(NotAVideo, match="cannot be read"):
        await probe(path)


async def test_an_mp4_without_frames_is_refused(tmp_path) -> None:
    path = tmp_path / "none.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        out.start_encoding()
    with pytest.raises(NotAVideo):
        await probe(path)


@pytest.mark.parametrize(
    "case",
    [
        ("a.y4m", "wrapped_avframe", "yuv420p", "YUV4MPEG: uncompressed"),
        ("a.ivf", "libvpx", "yuv420p", "IVF: it is a format of test streams"),
        ("a.avi", "magicyuv", "yuv444p", "magicyuv: it serves intermediate files"),
        ("a.mov", "qtrle", "rgb24", "qtrle: it is obsolete"),
        ("a.mov", "png", "rgb24", r"png\. Accepted are h264"),
    ],
)
async def test_refused_containers_and_codecs_are_named_with_the_reason(tmp_path, make_clip, case) -> None:
    name, encoder, pix_fmt, named = case
    with pytest.raises(UnsupportedMedia, match=named):
        await probe(make_clip(tmp_path / name, 0.5, codec=encoder, pix_fmt=pix_fmt))


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("PNG", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(17) + b"\0\0\0\x05IDAT"),
        ("WebP", b"RIFF\0\x01\0\0WEBPVP8 "),
        ("JPEG", b"\xff\xd8\xff\xe0\0\x10JFIF"),
        ("AVIF or HEIF", b"\0\0\0\x1cftypavif"),
        ("MXF", bytes.fromhex("060e2b34020501010d01020101020400")),
        ("RealMedia", b".RMF\0\0\0\x12"),
        ("DV", bytes.fromhex("1f0700bf")),
    ],
)
async def test_known_files_that_are_not_accepted_are_named_with_the_reason(tmp_path, name, head) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(head + bytes(2000))
    with pytest.raises(UnsupportedMedia, match=f"{name}: {EXCLUDED_FORMATS[name]}"):
        await probe(path)


async def test_the_settings_narrow_the_list(tmp_path, make_clip, clip) -> None:
    only_webm = VideoLimits(formats=frozenset({"matroska"}), codecs=frozenset({"vp9"}))
    with pytest.raises(UnsupportedMedia, match=r"MP4.* Accepted are Matroska and WebM\.$"):
        await probe(clip, only_webm)
    with pytest.raises(UnsupportedMedia, match=r"h264\. Accepted are vp9\.$"):
        await probe(make_clip(tmp_path / "a.mkv", 0.5), only_webm)
    assert (await probe(make_clip(tmp_path / "a.webm", 0.5, codec="libvpx-vp9"), only_webm)).codec == "vp9"


async def test_a_video_with_too_many_pixels_is_refused(clip) -> None:
    with pytest.raises(VideoTooLarge, match="160 × 120"):
        await probe(clip, VideoLimits(max_pixels=160 * 120 - 1))
    assert (await probe(clip, VideoLimits(max_pixels=160 * 120))).width == 160


async def test_a_huge_frame_in_a_small_file_is_refused(tmp_path) -> None:
    path = tmp_path / "huge.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 8000, 8000, "yuv420p"
        frame = av.VideoFrame(8000, 8000, "yuv420p")
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    assert path.stat().st_size < 1_000_000
    with pytest.raises(VideoTooLarge, match="8000 × 8000"):
        await probe(path)


async def test_flic_is_refused(tmp_path) -> None:
    header = (128 + 16).to_bytes(4, "little") + b"\x12\xaf" + b"\x01\x00\x40\x01\xc8\x00\x08\x00\x03\x00"
    path = tmp_path / "a.fli"
    path.write_bytes(header.ljust(128, b"\x00") + (16).to_bytes(4, "little") + b"\xfa\xf1".ljust(12, b"\x00"))
    with pytest.raises(NotAVideo):
        await probe(path)


async def test_a_video_that_is_too_long_is_refused(clip) -> None:
    with pytest.raises(VideoTooLong, match="3 s"):
        await probe(clip, VideoLimits(max_duration_s=2.9))


async def test_ten_hours_in_a_small_file_are_refused(tmp_path) -> None:
    path = tmp_path / "long.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        frame = av.VideoFrame(16, 16, "yuv420p")
        for second in range(0, 36_000, 600):
            frame.pts = second
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    assert path.stat().st_size < 100_000
    with pytest.raises(VideoTooLong):
        await probe(path, VideoLimits(max_duration_s=3600))


async def test_a_child_that_hangs_is_killed(tmp_path, clip, monkeypatch) -> None:
    pid_file = tmp_path / "pid"
    child = tmp_path / "child.py"
    child.write_text(
        f"import os, pathlib, time; pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid())); time.sleep(60)"
    )
    monkeypatch.setattr(module, "CHILD", child)
    with pytest.raises(NotAVideo, match="within 1 s"):
        await probe(clip, VideoLimits(wall_s=1.0))
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


NOT_FINITE = '{"outcome":"video","container":"mov","codec":"h264","width":9,"height":9,"fps":NaN}'


@pytest.mark.parametrize(
    "body",
    [
        "raise SystemExit(1)",
        "print('{')",
        "print('[]')",
        """print('{"outcome":"video"}')""",
        """print('{"outcome":[]}')""",
        f"print('{NOT_FINITE}')",
        "print('x' * 10_000_000)",
        "import os; os.abort()",
    ],
)
async def test_a_video_that_crashes_the_probe_is_refused(tmp_path, clip, monkeypatch, body) -> None:
    child = tmp_path / "child.py"
    child.write_text(body)
    monkeypatch.setattr(module, "CHILD", child)
    with pytest.raises(NotAVideo, match="crashed"):
        await asyncio.wait_for(probe(clip), 10)


async def test_a_killed_probe_is_not_blamed_on_the_file(tmp_path, clip, monkeypatch) -> None:
    child = tmp_path / "child.py"
    child.write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    monkeypatch.setattr(module, "CHILD", child)
    with pytest.raises(DecoderKilled, match="ran out of memory"):
        await probe(clip)


async def test_real_clips(videos: list[Path]) -> None:
    infos = [await probe(path) for path in videos]
    assert {info.codec for info in infos} == {"h264"}
    assert all(info.duration_s and info.duration_s > 1 and info.fps and info.width > 100 for info in infos)


def test_check_sandbox_distinguishes_a_missing_sandbox_from_other_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_sandbox()
    for name, error in (("confine.py", NoSandbox), ("another.py", RuntimeError)):
        child = tmp_path / name
        child.write_text("raise OSError(22, 'Invalid argument')")
        monkeypatch.setattr(module, "CHILD", child)
        with pytest.raises(error, match="Invalid argument"):
            check_sandbox()


@pytest.mark.parametrize("process", ["service.app", pytest.param("workers.main", marks=needs_worker)])
def test_processes_do_not_start_without_a_sandbox(process: str, tmp_path: Path) -> None:
    code = f"""
import sys, {process} as process
from service.contract.sandbox.probe import NoSandbox
def check_sandbox(): raise NoSandbox("no seccomp here")
process.check_sandbox = check_sandbox
sys.exit(process.main())"""
    env = {**os.environ, "DATA_DIR": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (78, 1), ended.stderr
    assert "no seccomp here" in ended.stderr
