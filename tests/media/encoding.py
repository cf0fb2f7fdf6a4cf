"""Encodes frames with PyAV into any container and codec, with timestamps that the caller chooses."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.audio.stream import AudioStream
from av.video.stream import VideoStream

from tests.workers.clips import SIZE

AUDIO_RATE = 48_000
CLOCK = Fraction(1, 90_000)
QUICK = {
    "h264": {"preset": "veryfast", "sc_threshold": "0"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:pools=none:scenecut=0"},
    "libsvtav1": {"preset": "11", "svtav1-params": "lp=1"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8", "b": "400k"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "b": "400k"},
}
"""Options that make encoders fast and quiet."""


@dataclass(frozen=True)
class Encoding:
    """How to encode a clip.

    `times_s` are the times of its frames, in multiples of `tick_s`; by default, `fps` is constant. `shift_s` is added
    to all timestamps of the video. `audio` is the codec of a silent track from 0 to `audio_s`. `context` sets
    attributes of the codec context.
    """

    codec: str = "h264"
    pix_fmt: str = "yuv420p"
    size: tuple[int, int] = SIZE
    fps: Fraction = Fraction(25)
    b_frames: int = 0
    gop: int = 10
    container: str | None = None
    muxer: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    context: dict[str, Any] = field(default_factory=dict)
    times_s: Sequence[float] | None = None
    tick_s: Fraction = Fraction(1, 1000)
    shift_s: Fraction = Fraction(0)
    audio: str | None = None
    audio_s: float = 1.2


def encode(path: Path, frames: Iterable[av.VideoFrame], how: Encoding) -> Path:
    """Write `frames` to `path` and return it."""
    try:
        with av.open(str(path), "w", format=how.container, container_options=how.muxer) as out:
            stream = _add_stream(out, how)
            sound = out.add_stream(how.audio, rate=AUDIO_RATE, layout="mono") if how.audio else None
            packets = list(_video_packets(stream, frames, how))
            if isinstance(sound, AudioStream):
                packets += _audio_packets(sound, how.audio_s)
            for packet in sorted(packets, key=_decode_time):
                out.mux(packet)
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # SVT-AV1 makes this thread a real-time thread
    return path


def _decode_time(packet: av.Packet) -> Fraction:
    assert packet.dts is not None and packet.time_base is not None
    return packet.dts * packet.time_base


def _add_stream(out: Any, how: Encoding) -> VideoStream:
    options = {"threads": "1", "bf": str(how.b_frames), **QUICK.get(how.codec, {}), **how.options}
    stream: VideoStream = out.add_stream(how.codec, rate=how.fps, options=options)
    stream.width, stream.height = how.size
    stream.pix_fmt, stream.gop_size = how.pix_fmt, how.gop
    if how.times_s is not None:
        stream.codec_context.time_base = how.tick_s
    for name, value in how.context.items():
        setattr(stream.codec_context, name, value)
    return stream


def _video_packets(stream: VideoStream, frames: Iterable[av.VideoFrame], how: Encoding) -> Iterator[av.Packet]:
    for index, frame in enumerate(frames):
        if how.times_s is None:
            frame.pts, frame.time_base = index, 1 / how.fps
        else:
            frame.pts, frame.time_base = round(how.times_s[index] / how.tick_s), how.tick_s
        yield from map(_shifter(how.shift_s), stream.encode(frame))
    yield from map(_shifter(how.shift_s), stream.encode())


def _shifter(shift_s: Fraction) -> Any:
    def shift(packet: av.Packet) -> av.Packet:
        assert packet.pts is not None and packet.dts is not None and packet.time_base is not None
        if shift_s:
            ticks, packet.time_base = packet.time_base / CLOCK, CLOCK
            packet.pts, packet.dts = (int(stamp * ticks + shift_s / CLOCK) for stamp in (packet.pts, packet.dts))
        return packet

    return shift


def _audio_packets(sound: AudioStream, duration_s: float) -> list[av.Packet]:
    """Return the packets of a silent track. The first one is at 0, although the encoder may give it an earlier time."""
    context = sound.codec_context
    context.open()
    samples, packets = context.frame_size or 1024, []
    for start in range(0, round(duration_s * AUDIO_RATE), samples):
        silence = av.AudioFrame(format=context.format.name, layout="mono", samples=samples)
        for plane in silence.planes:
            plane.update(bytes(plane.buffer_size))
        silence.sample_rate, silence.pts = AUDIO_RATE, start
        packets += sound.encode(silence)
    packets += sound.encode()
    first = packets[0].pts or 0
    for packet in packets:
        packet.pts = packet.dts = (packet.pts or 0) - first
    return packets
