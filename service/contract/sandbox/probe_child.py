"""The child process that inspects an untrusted file: `probe_child.py FILE MAX_PIXELS`, started by `probe.py`.

It gives up all rights that it does not need (`confine.py`), opens the file with PyAV restricted to the accepted formats
(`formats.py`), and prints one JSON object whose key `outcome` says what kind of file it is. The parent checks the
limits; the child only avoids decoding frames larger than MAX_PIXELS, unless their size is known only after decoding. It
runs without a search path, so it imports nothing from this package.
"""

import json
import runpy
import sys
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
CPU_S = 10
MAX_OPEN_FILES = 16
HEAD_BYTES = 1024
FOREIGN = {
    b"FLV": "Flash video",
    b"OggS": "Ogg",
    b"GIF8": "GIF",
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"\x00\x00\x01\xba": "an MPEG program stream",
    b"\x30\x26\xb2\x75": "ASF",
    b".RMF": "RealMedia",
    b"\x06\x0e\x2b\x34": "MXF",
}
"""First bytes of common formats that are not accepted, so that the error can name them."""
MOV_ATOMS = {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"}
TS_PACKET = 188
M2TS_PACKET = 192
TS_SYNC_BYTE = 0x47


def detect_demuxer(head: bytes) -> str | None:
    """Return the accepted demuxer that matches the file's first bytes. None: no demuxer matches, or several do.

    A file that several demuxers match is made to be read as one thing here and as another elsewhere.
    """
    matches = {
        "mov": head[4:8] in MOV_ATOMS,
        "matroska": head.startswith(b"\x1aE\xdf\xa3"),
        "avi": head.startswith(b"RIFF") and head[8:12] == b"AVI ",
        "mpegts": any(_has_sync_bytes(head, start, step) for start, step in ((0, TS_PACKET), (4, M2TS_PACKET))),
    }
    names = [name for name, matched in matches.items() if matched]
    return names[0] if len(names) == 1 else None


def _has_sync_bytes(head: bytes, start: int, step: int) -> bool:
    positions = range(start, min(len(head), start + 5 * step), step)
    return len(positions) > 1 and all(head[position] == TS_SYNC_BYTE for position in positions)


def inspect(path: Path, max_pixels: int) -> dict[str, Any]:
    """Return the report on the file at `path`: what it is and, for a video, its properties."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    demuxer = detect_demuxer(head)
    if demuxer is None or demuxer not in FORMATS["DEMUXERS"]:
        foreign = next((name for magic, name in FOREIGN.items() if head.startswith(magic)), None)
        return {"outcome": "foreign", "container": foreign} if foreign else {"outcome": "nothing"}
    report = inspect_with(demuxer, path, max_pixels, {"max_pixels": str(max_pixels)})
    if report.get("width") == 0:  # the headers state no size; only a decoder without the limit can find it
        report = inspect_with(demuxer, path, max_pixels, {})
    return report


def inspect_with(demuxer: str, path: Path, max_pixels: int, decoder_limits: dict[str, str]) -> dict[str, Any]:
    """Return the report that `demuxer` gives. FFmpeg applies `decoder_limits` already while it opens the file."""
    options = {**FORMATS["probe_options"](demuxer), **decoder_limits}
    try:
        with av.open(str(path), "r", format=demuxer, container_options=options, options=options) as container:
            streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not streams:
                return {"outcome": "no video", "container": demuxer}
            properties = {"container": demuxer, "streams": len(container.streams), **describe(streams[0])}
            if properties["duration_s"] is None and container.duration:
                properties["duration_s"] = container.duration / av.time_base
            packet = next((p for p in container.demux(streams[0]) if p.size), None)
            if packet is None:
                return {"outcome": "no video", "container": demuxer}
            small = 0 < properties["width"] * properties["height"] <= max_pixels
            properties["rotation"] = rotation(container, streams[0]) if small else 0
            return {"outcome": "video", **properties}
    except av.FFmpegError as error:
        return {"outcome": "damage", "container": demuxer, "detail": error.strerror}


def describe(stream: VideoStream) -> dict[str, Any]:
    """Return the properties of a video stream that its headers state."""
    context = stream.codec_context
    rate: Fraction | None = stream.average_rate or stream.guessed_rate
    duration_s = stream.duration * stream.time_base if stream.duration and stream.time_base else None
    return {
        "codec": context.codec.canonical_name if context is not None else "unknown",
        "width": context.width if context is not None else 0,
        "height": context.height if context is not None else 0,
        "fps": float(rate) if rate else None,
        "duration_s": float(duration_s) if duration_s is not None else None,
    }


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
    CONFINEMENT = runpy.run_path(str(SANDBOX / "confine.py"))["confine"](sys.argv[1], CPU_S, MAX_OPEN_FILES)
    print(json.dumps({**inspect(Path(sys.argv[1]), int(sys.argv[2])), "confinement": CONFINEMENT}))
