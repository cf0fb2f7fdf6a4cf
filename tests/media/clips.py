"""Clips in every accepted container and codec, and with every property that makes it hard to find a frame's time.

Each frame shows its own number. `Clip.shown` says at which time a viewer sees which number. It follows from how the
clip is made, never from the code under test. Time zero is the container's start: the earliest start of its streams.
"""

import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.media.changes import from_packet, joined, packed_b_frames, truncated
from tests.media.encoding import Encoding, encode
from tests.workers.clips import numbered, rotate, trimmed

COUNT = 30
TRIMMED = 12
VARIABLE_S = (0, 0.05, 0.1, 0.4, 0.43, 0.48, 0.7, 1.2, 1.25, 1.3, 1.9, 2.0)
SHORT_S = (0, 0.01, 0.02, 0.5, 0.9)
SHORT_AS_SHOWN_S = (0, 0.1, 0.2, 0.68, 1.08)
"""Browsers replace a delay of 10 ms by 100 ms."""
DROPPED_S = tuple(number / 25 for number in range(40) if number % 7 not in (3, 4))
LATE_S = Fraction(3, 2)
LONG = {"count": 260, "gop": 50}
MISSING = 5
CLOCK_OVERFLOW_S = Fraction(2**33, 90_000)
"""The time after which the clock of MPEG-TS starts from 0 again."""
NTSC = Fraction(30_000, 1001)
WIDE = (256, 144)
H263_SIZE = (176, 144)
OPEN_GOP = {"x264-params": "open-gop=1:bframes=3:scenecut=0:log-level=none"}
HEVC_OPEN_GOP = {"x265-params": "open-gop=1:bframes=3:scenecut=0:log-level=none:pools=none"}
HIDDEN_FRAMES = {"-auto-alt-ref": "1", "-lag-in-frames": "16", "-b:v": "200k", "-pass": "1", "-enc_time_base": "1:1000"}
"""Makes the encoder of VP8 write frames that are never shown, 1 ms after the frame before."""
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
LATE_FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof+frag_discont"}
INTERLACED = {"flags": "+ildct+ilme"}
PQ, HLG = ({"color_primaries": 9, "colorspace": 9, "color_trc": transfer} for transfer in (16, 18))
"""BT.2020, with the transfer functions SMPTE ST 2084 and ARIB STD-B67."""

Draw = Callable[[int, tuple[int, int]], np.ndarray]
Shown = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Clip:
    """A clip, and what a viewer sees of it: the number of each frame and its time in seconds."""

    name: str
    how: Encoding
    shown: Shown
    draw: Draw = numbered
    change: Callable[[Path, Path], Path] | None = None
    is_cut: bool = False
    """Only a part of `shown`, from the beginning, is in the file."""
    encoder: str | None = None
    """The encoder of the `ffmpeg` program that makes this clip, because PyAV has none for its codec."""
    count: int = COUNT
    """Number of frames, unless `how` states their times."""

    @property
    def is_possible(self) -> bool:
        """Whether this machine can make the clip."""
        return self.encoder is None or self.encoder in program_encoders()

    def write(self, directory: Path) -> Path:
        """Encode the clip and return its path."""
        path = directory / self.name
        if self.encoder:
            return self._encode_with_program(path)
        if self.change is None:
            return encode(path, self._frames(), self.how)
        return self.change(encode(directory / f"original-{self.name}", self._frames(), self.how), path)

    def _pictures(self) -> Iterator[np.ndarray]:
        return (self.draw(number, self.how.size) for number in range(len(self.how.times_s or range(self.count))))

    def _frames(self) -> Iterator[av.VideoFrame]:
        return (av.VideoFrame.from_ndarray(picture, format="rgb24") for picture in self._pictures())

    def _encode_with_program(self, path: Path) -> Path:
        """Encode with the `ffmpeg` program, in two passes if `how` has the option `pass`."""
        width, height = self.how.size
        raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(self.how.fps), "-i", "-")
        options = {"-g": str(self.how.gop), "-passlogfile": str(path), **self.how.options}
        data = b"".join(picture.tobytes() for picture in self._pictures())
        for number in ("1", "2") if "-pass" in options else ("1",):
            options |= {"-pass": number} if "-pass" in options else {}
            arguments = [part for option in options.items() for part in option]
            command = ("ffmpeg", "-v", "error", "-y", *raw, "-c:v", str(self.encoder), *arguments, str(path))
            subprocess.run(command, input=data, check=True)
        return path


@cache
def program_encoders() -> str:
    """Return what the `ffmpeg` program says about its encoders; nothing if it is not installed."""
    if shutil.which("ffmpeg") is None:
        return ""
    return subprocess.run(("ffmpeg", "-hide_banner", "-encoders"), capture_output=True, text=True, check=True).stdout


def clip(
    name: str,
    codec: str = "h264",
    *,
    shown: Shown | None = None,
    draw: Draw = numbered,
    change: Callable[[Path, Path], Path] | None = None,
    is_cut: bool = False,
    encoder: str | None = None,
    count: int = COUNT,
    **how: Any,
) -> Clip:
    """Return a clip of `count` frames at a constant rate, or of frames at `times_s`. `how` describes its encoding."""
    encoding = Encoding(codec, **how)
    times: Sequence[float] = encoding.times_s or [float(number / encoding.fps) for number in range(count)]
    delay_s = float(encoding.shift_s) if encoding.audio else 0.0
    usual = tuple((number, time_s + delay_s) for number, time_s in enumerate(times))
    return Clip(name, encoding, shown or usual, draw, change, is_cut, encoder, count)


def on_its_side(number: int, size: tuple[int, int]) -> np.ndarray:
    """Return a frame that is upright after a clockwise rotation by 90°."""
    width, height = size
    return np.ascontiguousarray(np.rot90(numbered(number, (height, width))))


def after_missing_frames() -> Shown:
    """Return what is shown of a clip whose first packets are missing: decoding starts with the second keyframe."""
    return tuple((number, (number - MISSING) / 25) for number in range(10, COUNT))


CONTAINERS_AND_CODECS = (
    clip("h264.mp4", b_frames=2),
    clip("hevc.mp4", "libx265", b_frames=2),
    clip("av1.mp4", "libsvtav1"),
    clip("vp9.mp4", "libvpx-vp9"),
    clip("mpeg4.mp4", "mpeg4", b_frames=1),
    clip("fragments.mp4", b_frames=2, muxer=FRAGMENTS),
    clip("h264.mov", b_frames=2),
    clip("prores.mov", "prores_ks", pix_fmt="yuv422p10le"),
    clip("prores4444.mov", "prores_ks", pix_fmt="yuva444p10le", options={"profile": "4444"}),
    clip("dnxhr.mov", "dnxhd", pix_fmt="yuv422p", size=WIDE, options={"profile": "dnxhr_lb"}),
    clip("mjpeg.mov", "mjpeg", pix_fmt="yuvj420p"),
    clip("h264.mkv", b_frames=2),
    clip("hevc.mkv", "libx265", b_frames=2),
    clip("av1.mkv", "libsvtav1"),
    clip("mpeg2.mkv", "mpeg2video", b_frames=2),
    clip("ffv1.mkv", "ffv1"),
    clip("vp8.webm", "libvpx"),
    clip("vp9.webm", "libvpx-vp9"),
    clip("av1.webm", "libsvtav1"),
    clip("mpeg4.avi", "mpeg4"),
    clip("mpeg4-b.avi", "mpeg4", b_frames=1),
    clip("xvid-packed.avi", "mpeg4", b_frames=1, change=packed_b_frames),
    clip("h264.avi", b_frames=2),
    clip("divx2.avi", "msmpeg4v2"),
    clip("divx3.avi", "msmpeg4"),
    clip("mjpeg.avi", "mjpeg", pix_fmt="yuvj420p"),
    clip("ffv1.avi", "ffv1"),
    clip("h264.ts", b_frames=2),
    clip("hevc.ts", "libx265", b_frames=2),
    clip("mpeg2.ts", "mpeg2video", b_frames=2),
    clip("h264.m2ts", b_frames=2, muxer={"mpegts_m2ts_mode": "1"}, container="mpegts"),
    clip("mpeg1.mpg", "mpeg1video", b_frames=2),
    clip("mpeg2.mpg", "mpeg2video", b_frames=2, container="vob"),
    clip("sorenson.flv", "flv"),
    clip("h264.flv", b_frames=2),
    clip("wmv1.wmv", "wmv1"),
    clip("wmv2.wmv", "wmv2"),
    clip("divx3.asf", "msmpeg4"),
    clip("theora.ogv", "theora", encoder="libtheora"),
    clip("h263.3gp", "h263", size=H263_SIZE),
    clip("mpeg4.3gp", "mpeg4"),
    clip("h264.3gp", b_frames=2),
    clip("animated.gif", "gif", pix_fmt="gray"),
    clip("animated.webp", "libwebp_anim"),
    clip("animated.png", "apng", pix_fmt="rgb24", container="apng"),
    clip("raw.h264", b_frames=2),
    clip("raw.hevc", "libx265", b_frames=2),
)
PROPERTIES = (
    clip("open-gop.mp4", options=OPEN_GOP),
    clip("open-gop.mkv", options=OPEN_GOP),
    clip("open-gop.ts", options=OPEN_GOP),
    clip("open-gop-hevc.mp4", "libx265", options=HEVC_OPEN_GOP),
    clip(
        "edit-list.mp4",
        b_frames=2,
        change=partial(trimmed, skipped_s=TRIMMED / 25),
        shown=tuple((number, (number - TRIMMED) / 25) for number in range(TRIMMED, COUNT)),
    ),
    clip("offset.mp4", b_frames=2, muxer=LATE_FRAGMENTS, shift_s=Fraction(1, 5)),
    clip("offset.mkv", b_frames=2, shift_s=Fraction(73, 10)),
    clip("offset.ts", b_frames=2, shift_s=Fraction(5000)),
    clip("offset.flv", b_frames=2, shift_s=Fraction(3)),
    clip("late.mp4", b_frames=2, shift_s=LATE_S, audio="aac", audio_s=2.7),
    clip("late.mkv", b_frames=2, shift_s=LATE_S, audio="flac", audio_s=2.7),
    clip("late.ts", b_frames=2, shift_s=LATE_S, audio="mp2", audio_s=2.7),
    clip("late.flv", "flv", shift_s=LATE_S, audio="aac", audio_s=2.7),
    clip("wrap.ts", b_frames=2, shift_s=CLOCK_OVERFLOW_S - Fraction(3, 5)),
    clip("joined.ts", b_frames=2, count=2 * COUNT, change=partial(joined, second=COUNT)),
    clip("mid-gop.ts", change=partial(from_packet, first=MISSING), shown=after_missing_frames()),
    clip("hidden-frames.webm", "vp8", encoder="libvpx", gop=COUNT, options=HIDDEN_FRAMES),
    clip("dropped.avi", "mpeg4", times_s=DROPPED_S, tick_s=Fraction(1, 25)),
    clip("dropped-b.avi", "mpeg4", b_frames=1, times_s=DROPPED_S, tick_s=Fraction(1, 25)),
    clip("variable.mp4", b_frames=2, times_s=VARIABLE_S),
    clip("variable.mkv", b_frames=2, times_s=VARIABLE_S),
    clip("variable.gif", "gif", pix_fmt="gray", times_s=VARIABLE_S),
    clip("short-delays.gif", "gif", pix_fmt="gray", times_s=SHORT_S, shown=tuple(enumerate(SHORT_AS_SHOWN_S))),
    clip("fast-clock.mkv", b_frames=2, fps=Fraction(2000), times_s=VARIABLE_S),
    clip("variable.webp", "libwebp_anim", times_s=VARIABLE_S),
    clip("ntsc.mp4", b_frames=2, fps=NTSC),
    clip("rotated.mp4", draw=on_its_side, change=rotate),
    clip("anamorphic.mp4", context={"sample_aspect_ratio": Fraction(3, 2)}),
    clip("interlaced.mp4", b_frames=2, options={"x264-params": "interlaced=1:log-level=none"}),
    clip("interlaced.mpg", "mpeg2video", b_frames=2, container="vob", options=INTERLACED),
    clip("interlaced.ts", "mpeg2video", b_frames=2, options=INTERLACED),
    clip("pq.mp4", "libx265", b_frames=2, pix_fmt="yuv420p10le", context=PQ),
    clip("pq.webm", "libsvtav1", pix_fmt="yuv420p10le", context=PQ),
    clip("hlg.mkv", "libx265", pix_fmt="yuv420p10le", context=HLG),
    clip("10-bit.mkv", b_frames=2, pix_fmt="yuv420p10le"),
    clip("444.mp4", b_frames=2, pix_fmt="yuv444p"),
    clip("one-frame.mp4", times_s=(0.0,)),
    clip("one-frame.mkv", times_s=(0.0,)),
    clip("one-frame.mpg", "mpeg2video", container="vob", count=1),
    clip("truncated.mkv", b_frames=2, change=truncated, is_cut=True),
    clip("truncated.ts", b_frames=2, change=truncated, is_cut=True),
    clip("truncated.avi", "mpeg4", count=60, change=truncated, is_cut=True),
    clip("truncated.gif", "gif", pix_fmt="gray", change=truncated, is_cut=True),
    clip("truncated.webp", "libwebp_anim", change=truncated, is_cut=True),
    clip("truncated.wmv", "wmv2", count=60, change=truncated, is_cut=True),
    clip("truncated.mp4", b_frames=2, muxer=FRAGMENTS, change=truncated, is_cut=True),
)
LONG_CLIPS = (
    clip("long.mkv", b_frames=2, **LONG),
    clip("long.mp4", "libx265", b_frames=2, **LONG),
    clip("long.webm", "libvpx-vp9", **LONG),
    clip("long.ts", b_frames=2, **LONG),
    clip("long.mpg", "mpeg2video", b_frames=2, container="vob", **LONG),
    clip("long.flv", "flv", **LONG),
    clip("long.wmv", "wmv2", **LONG),
    clip("long.avi", "mpeg4", b_frames=1, **LONG),
    clip("long.ogv", "theora", encoder="libtheora", **LONG),
)
"""Clips in which a decoder must seek far."""
CLIPS = (*CONTAINERS_AND_CODECS, *PROPERTIES, *LONG_CLIPS)
