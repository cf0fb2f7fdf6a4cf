"""The child process that inspects an untrusted file: `probe_child.py SPEC`, started by `probe.py`.

It gives up all rights that it does not need (`confine.py`), detects the container from the file's first bytes
(`signatures.py`), opens the file with PyAV restricted to that container and the accepted codecs (`formats.py`), and
prints one JSON object whose key `outcome` says what kind of file it is. The parent checks the limits; the child only
avoids decoding frames larger than `max_pixels`, unless their size is known only after decoding. It runs without a
search path, so it imports nothing from this package.
"""

import json
import runpy
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.logging
import av.subtitles.codeccontext
import av.subtitles.stream
from av.stream import Disposition
from av.video.stream import VideoStream

SANDBOX = Path(__file__).resolve().parent
FORMATS = runpy.run_path(str(SANDBOX / "formats.py"))
SIGNATURES = runpy.run_path(str(SANDBOX / "signatures.py"))
WEBP = runpy.run_path(str(SANDBOX / "webp.py"))
CPU_S = 10
MAX_OPEN_FILES = 16
MAX_ASPECT = 16
"""Pixels are stretched at most by this factor. Larger ones are written by mistake or with bad intent."""


@dataclass(frozen=True)
class Spec:
    """What to inspect, and which containers and codecs are accepted."""

    path: str
    max_pixels: int
    formats: list[str]
    codecs: list[str]


def inspect(spec: Spec) -> dict[str, Any]:
    """Return the report on a file: what it is and, for a video, its properties."""
    with Path(spec.path).open("rb") as file:
        demuxer, excluded = SIGNATURES["detect"](file)
    if demuxer is None:
        return {"outcome": "foreign", "container": excluded} if excluded else {"outcome": "nothing"}
    if demuxer not in spec.formats:
        return {"outcome": "foreign", "container": FORMATS["FORMATS"][demuxer]}
    if demuxer == "webp":
        return inspect_webp(Path(spec.path))
    report = inspect_with(demuxer, spec, {"max_pixels": str(spec.max_pixels)})
    if report.get("width") == 0:  # the headers state no size; only a decoder without the limit can find it
        report = inspect_with(demuxer, spec, {})
    return report


def inspect_webp(path: Path) -> dict[str, Any]:
    """Return the report on an animated WebP. Its frames are not decoded."""
    with path.open("rb") as file:
        width, height = WEBP["canvas_size"](file.read(WEBP["HEAD_BYTES"]))
    durations_ms = list(WEBP["durations_ms"](path))
    if not durations_ms:
        return {"outcome": "no video", "container": "webp"}
    duration_s = sum(durations_ms) / 1000
    size = {"width": width, "height": height}
    return {"outcome": "video", "container": "webp", "codec": "webp", "duration_s": duration_s, **size} | {
        "fps": len(durations_ms) / duration_s
    }


def inspect_with(demuxer: str, spec: Spec, decoder_limits: dict[str, str]) -> dict[str, Any]:
    """Return the report that `demuxer` gives. FFmpeg applies `decoder_limits` already while it opens the file."""
    options = {**FORMATS["probe_options"](demuxer, spec.codecs), **decoder_limits}
    try:
        with av.open(spec.path, "r", format=demuxer, container_options=options, options=options) as container:
            streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not streams:
                return {"outcome": "no video", "container": demuxer}
            properties = {"container": demuxer, "streams": len(container.streams), **describe(streams[0])}
            properties["duration_s"] = duration_s(container, streams[0])
            if demuxer in FORMATS["WITHOUT_TIMES"]:
                properties["fps"] = float(FORMATS["frame_rate"](streams[0].guessed_rate) or 0) or None
            packet = next((p for p in container.demux(streams[0]) if p.size), None)
            if packet is None:
                return {"outcome": "no video", "container": demuxer}
            small = 0 < properties["width"] * properties["height"] <= spec.max_pixels
            properties["rotation"] = rotation(container, streams[0]) if small else 0
            return {"outcome": "video", **properties}
    except av.FFmpegError as error:
        return {"outcome": "damage", "container": demuxer, "detail": error.strerror}


def describe(stream: VideoStream) -> dict[str, Any]:
    """Return the properties of a video stream that its headers state."""
    context = stream.codec_context
    rate: Fraction | None = FORMATS["frame_rate"](stream.average_rate, stream.guessed_rate)
    aspect = stream.sample_aspect_ratio or Fraction(1)
    return {
        "codec": context.codec.canonical_name if context is not None else "unknown",
        "width": context.width if context is not None else 0,
        "height": context.height if context is not None else 0,
        "pixel_aspect": min(max(float(aspect), 1 / MAX_ASPECT), MAX_ASPECT) if aspect > 0 else 1.0,
        "fps": float(rate) if rate else None,
    }


def duration_s(container: "av.container.InputContainer", stream: VideoStream) -> float | None:
    """Return the time from the container's start to the end of the stream, None if the file does not state it."""
    start_s = (container.start_time or 0) / av.time_base
    if not stream.duration or not stream.time_base:
        end_s = container.duration / av.time_base if container.duration else 0.0
        is_absolute = container.format.name.startswith("matroska")  # its header states the time of the end
        return (end_s - start_s if is_absolute and end_s > start_s else end_s) or None
    delay_s = float(stream.start_time * stream.time_base) - start_s if stream.start_time is not None else 0.0
    return max(delay_s, 0.0) + float(stream.duration * stream.time_base)


def rotation(container: "av.container.InputContainer", stream: VideoStream) -> int:
    """Return the clockwise rotation of the first frame in degrees, a multiple of 90; 0 if no frame can be decoded."""
    stream.thread_count = 1
    try:
        container.seek(0)
        frame = next(container.decode(stream), None)
    except av.FFmpegError:
        return 0
    return round(-frame.rotation / 90) * 90 % 360 if frame is not None else 0


if __name__ == "__main__":
    av.logging.set_level(None)
    SPEC = Spec(**json.loads(sys.argv[1]))
    CONFINEMENT = runpy.run_path(str(SANDBOX / "confine.py"))["confine"](SPEC.path, CPU_S, MAX_OPEN_FILES)
    print(json.dumps({**inspect(SPEC), "confinement": CONFINEMENT}))
