"""Tells the container of a file from its first bytes. The probe's child loads this file by its path."""

import runpy
from pathlib import Path
from typing import BinaryIO

WEBP = runpy.run_path(str(Path(__file__).with_name("webp.py")))
HEAD_BYTES = 1024
MOV_ATOMS = {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"}
PICTURE_BRANDS = {b"avif", b"avis", b"heic", b"heix", b"hevc", b"mif1", b"msf1"}
TS_PACKET = 188
M2TS_PACKET = 192
TS_SYNC_BYTE = 0x47
ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_PNG_CHUNKS = 64
"""An animated PNG says so in one of this many chunks."""
H264_STARTS = {b"\x06", b"\x09", b"\x27", b"\x47", b"\x67"}
"""First bytes of the units that a raw stream may start with: SEI, access unit delimiter, sequence parameters."""
HEVC_STARTS = {b"\x40", b"\x42", b"\x46", b"\x4e"}
"""Likewise: video parameters, sequence parameters, access unit delimiter, SEI. The second byte is 1."""
EXCLUDED = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b".RMF": "RealMedia",
    b"\x06\x0e\x2b\x34": "MXF",
    b"\x1f\x07\x00": "DV",
    b"YUV4MPEG2": "YUV4MPEG",
    b"DKIF": "IVF",
    b"nut/multimedia container": "NUT",
    b"FWS": "SWF",
    b"CWS": "SWF",
    bytes.fromhex("b7d800203749da11a64e0007e95ead8d"): "WTV",
    b"\x00\x00\x01\xb0": "raw MPEG-1, MPEG-2 or MPEG-4",
    b"\x00\x00\x01\xb3": "raw MPEG-1, MPEG-2 or MPEG-4",
    b"\x12\x00\x0a": "raw AV1",
}
"""First bytes of containers in `EXCLUDED_FORMATS` (`formats.py`), so that the error can name them."""


def detect(file: BinaryIO) -> tuple[str | None, str | None]:
    """Return the demuxer that matches the first bytes of the file, and the name of an excluded container.

    At most one of the two is set. A file that several demuxers match gets neither: it is made to be read as one thing
    here and as another elsewhere.
    """
    head = file.read(HEAD_BYTES)
    names = [name for name, matched in _matches(head, file).items() if matched]
    if len(names) == 1:
        return names[0], None
    return None, None if names else _excluded(head)


def _matches(head: bytes, file: BinaryIO) -> dict[str, bool]:
    return {
        "mov": head[4:8] in MOV_ATOMS and not _is_picture(head),
        "matroska": head.startswith(b"\x1aE\xdf\xa3"),
        "avi": head.startswith(b"RIFF") and head[8:12] == b"AVI ",
        "mpegts": any(_has_sync_bytes(head, start, step) for start, step in ((0, TS_PACKET), (4, M2TS_PACKET))),
        "mpeg": head.startswith(b"\x00\x00\x01\xba"),
        "flv": head.startswith(b"FLV\x01"),
        "asf": head.startswith(ASF_HEADER),
        "ogg": head.startswith(b"OggS"),
        "gif": head.startswith((b"GIF87a", b"GIF89a")),
        "apng": head.startswith(PNG_SIGNATURE) and _is_animated_png(file),
        "webp": WEBP["is_animated"](head),
        "h264": (unit := _first_unit(head))[:1] in H264_STARTS,
        "hevc": unit[:1] in HEVC_STARTS and unit[1:] == b"\x01",
    }


def _excluded(head: bytes) -> str | None:
    if _is_picture(head):
        return "AVIF or HEIF"
    if WEBP["is_webp"](head):
        return "WebP"
    return next((name for magic, name in EXCLUDED.items() if head.startswith(magic)), None)


def _has_sync_bytes(head: bytes, start: int, step: int) -> bool:
    positions = range(start, min(len(head), start + 5 * step), step)
    return len(positions) > 1 and all(head[position] == TS_SYNC_BYTE for position in positions)


def _is_picture(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in PICTURE_BRANDS


def _is_animated_png(file: BinaryIO) -> bool:
    """Return whether the chunk that announces an animation comes before the first pixels."""
    file.seek(len(PNG_SIGNATURE))
    for _ in range(MAX_PNG_CHUNKS):
        header = file.read(8)
        if header[4:] in (b"acTL", b"IDAT", b""):
            return header[4:] == b"acTL"
        file.seek(int.from_bytes(header[:4]) + 4, 1)  # the content and its checksum
    return False


def _first_unit(head: bytes) -> bytes:
    """Return the two bytes after the start code of a raw H.264 or H.265 stream; nothing without a start code."""
    start = next((len(code) for code in (b"\x00\x00\x00\x01", b"\x00\x00\x01") if head.startswith(code)), 0)
    return head[start : start + 2] if start else b""
