"""The child that looks into an untrusted file: `python -I probe_child.py FILE MAX_PIXELS`, started by `probe.py`.

It gives up what it does not need (`confine.py`), opens the file with PyAV under a closed list of containers, protocols
and decoders, and prints what it found as one JSON object with a `found` key. What is allowed is for the parent to
say, but for pixels: nothing larger is decoded here, unless its size stands in the frames alone. It imports nothing of
this package, for it runs without a search path.
"""

import json
import runpy
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.logging
from av.stream import Disposition
from av.video.stream import VideoStream

CPU_S = 10
FILES = 16
DEMUXERS = {"mov": "mov", "matroska": "matroska", "avi": "avi", "mpegts": "mpegts"}
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts"
DECODERS = "h264,hevc,vp8,vp9,libvpx,libvpx-vp9,av1,libdav1d,libaom-av1,mpeg4,aac,mp3,mp3float,opus,vorbis,ac3,flac"
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
MOV_ATOMS = {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"}
TS_PACKET = 188
M2TS_PACKET = 192


def container_of(head: bytes) -> str | None:
    """Return the demuxer that the first bytes call for, None where they call for none that is allowed."""
    if head[4:8] in MOV_ATOMS:
        return "mov"
    if head.startswith(b"\x1aE\xdf\xa3"):
        return "matroska"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "avi"
    for start, step in ((0, TS_PACKET), (4, M2TS_PACKET)):
        places = range(start, min(len(head), start + 5 * step), step)
        if len(places) > 1 and all(head[place] == 0x47 for place in places):
            return "mpegts"
    return None


def look(path: Path, max_pixels: int) -> dict[str, Any]:
    """Return what the file at `path` is."""
    with path.open("rb") as file:
        head = file.read(1024)
    demuxer = container_of(head)
    if demuxer is None:
        foreign = next((name for magic, name in FOREIGN.items() if head.startswith(magic)), None)
        return {"found": "foreign", "container": foreign} if foreign else {"found": "nothing"}
    found = look_by(demuxer, path, max_pixels, {"max_pixels": str(max_pixels)})
    if found.get("width") == 0:  # which some decoders alone could tell
        found = look_by(demuxer, path, max_pixels, {})
    return found


def look_by(demuxer: str, path: Path, max_pixels: int, limits: dict[str, str]) -> dict[str, Any]:
    """Return what the demuxer finds. `limits` are the decoders', which FFmpeg tries on the first frames already."""
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file", "codec_whitelist": DECODERS, **limits}
    try:
        with av.open(str(path), "r", format=DEMUXERS[demuxer], container_options=options, options=options) as container:
            streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not streams:
                return {"found": "no video", "container": demuxer}
            facts = {"container": demuxer, "streams": len(container.streams), **describe(streams[0])}
            if facts["duration_s"] is None and container.duration:
                facts["duration_s"] = container.duration / av.time_base
            packet = next((p for p in container.demux(streams[0]) if p.size), None)
            if packet is None:
                return {"found": "no video", "container": demuxer}
            small = 0 < facts["width"] * facts["height"] <= max_pixels
            facts["rotation"] = rotation(container, streams[0]) if small else 0
            return {"found": "video", **facts}
    except av.FFmpegError as error:
        return {"found": "damage", "container": demuxer, "detail": error.strerror}


def describe(stream: VideoStream) -> dict[str, Any]:
    """Return the facts that the headers tell of one video stream."""
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
    """Return the quarter turns, in degrees clockwise, that the first frame is to be shown with; 0 without a frame."""
    stream.thread_count = 1
    try:
        container.seek(0)
        frame = next(container.decode(stream), None)
    except av.FFmpegError:
        return 0
    return round(-frame.rotation / 90) * 90 % 360 if frame is not None else 0


if __name__ == "__main__":
    av.logging.set_level(None)
    runpy.run_path(str(Path(__file__).with_name("confine.py")))["confine"](sys.argv[1], CPU_S, FILES)
    print(json.dumps(look(Path(sys.argv[1]), int(sys.argv[2]))))
