"""Changes to encoded files: packed B-frames, as DivX and XviD write them, and files with a missing start or end."""

from pathlib import Path
from typing import Any

import av
from av.video.stream import VideoStream

PACKED = b"\x00\x00\x01\xb2DivX503b1393p"
"""User data that says: B-frames are packed (the final `p`)."""
VOP_START = b"\x00\x00\x01\xb6"
INCREMENT_BITS = 5
"""Length of a VOP's time in the header, at 25 frames per second."""
P_VOP, B_VOP = "01", "10"


def truncated(source: Path, target: Path) -> Path:
    """Copy the first two thirds of a file."""
    data = source.read_bytes()
    target.write_bytes(data[: len(data) * 2 // 3])
    return target


def from_packet(source: Path, target: Path, first: int) -> Path:
    """Copy a file without its first packets, as if recording had started between two keyframes."""
    with av.open(str(source)) as read, av.open(str(target), "w") as out:
        stream = out.add_stream_from_template(read.streams.video[0])
        for packet in [packet for packet in read.demux(video=0) if packet.size][first:]:
            packet.stream = stream
            out.mux(packet)
    return target


def joined(source: Path, target: Path, second: int) -> Path:
    """Copy a file as two, the second of which starts at packet `second` and at time 0, and join them byte by byte."""
    with av.open(str(source)) as read:
        packets = [packet for packet in read.demux(video=0) if packet.size]
        for part in (packets[:second], packets[second:]):
            _copy_from_zero(part, read.streams.video[0], target.with_name(f"part{target.suffix}"))
            with target.open("ab") as out:
                out.write(target.with_name(f"part{target.suffix}").read_bytes())
    return target


def _copy_from_zero(packets: list[Any], template: VideoStream, target: Path) -> None:
    first = packets[0].pts
    with av.open(str(target), "w") as out:
        stream = out.add_stream_from_template(template)
        for packet in packets:
            packet.pts, packet.dts, packet.stream = packet.pts - first, packet.dts - first, stream
            out.mux(packet)


def packed_b_frames(source: Path, target: Path) -> Path:
    """Copy an AVI in MPEG-4 at 25 frames per second, with its B-frames packed.

    Each B-frame shares a chunk with the reference frame before it, and a chunk without a picture follows. So the
    chunks are in the order of presentation, except that the decoder keeps each reference frame for one more chunk.
    """
    with av.open(str(source)) as read, av.open(str(target), "w") as out:
        stream = out.add_stream_from_template(read.streams.video[0])
        stream.codec_context.codec_tag = "XVID"
        for index, chunk in enumerate(_chunks([bytes(packet) for packet in read.demux(video=0) if packet.size])):
            packet = av.Packet(chunk)
            packet.pts = packet.dts = index
            packet.time_base, packet.stream = stream.time_base, stream
            packet.is_keyframe = _bits(chunk).startswith("00")
            out.mux(packet)
    return target


def _chunks(pictures: list[bytes]) -> list[bytes]:
    """Return the chunks of an AVI with packed B-frames; `pictures` are in the order of decoding."""
    chunks: list[bytes] = []
    for picture in pictures:
        bits = _bits(picture)
        if bits.startswith(B_VOP):
            chunks[-1:] = [chunks[-1] + picture, _empty_picture(_bits(chunks[-1]))]
        else:
            chunks.append(picture.replace(VOP_START, PACKED + VOP_START, 1) if bits.startswith("00") else picture)
    return chunks


def _bits(chunk: bytes) -> str:
    """Return the bits that follow the first VOP's start code. The first two say its type: 00 is an I-VOP."""
    start = chunk.index(VOP_START) + len(VOP_START)
    return "".join(f"{byte:08b}" for byte in chunk[start : start + 8])


def _empty_picture(reference: str) -> bytes:
    """Return a P-VOP that is not coded and has the same time as the reference frame with these first bits."""
    increment = reference.index("0", 2) + 2
    bits = P_VOP + "0" + "1" + reference[increment : increment + INCREMENT_BITS] + "1" + "0"
    bits += "0".ljust(8 - len(bits) % 8, "1")
    return VOP_START + int(bits, 2).to_bytes(len(bits) // 8)
