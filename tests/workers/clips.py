"""Test videos whose frames show their own number, so that a test can tell which frame it received."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

BITS = 9
SIZE = (160, 120)


def numbered(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return a grey frame that shows `number` as white blocks, lowest bit on the left; uint8 [height, width, 3]."""
    width, height = size
    frame = np.full((height, width, 3), 70, np.uint8)
    for bit in range(BITS):
        left, right = (width * k // (BITS + 1) for k in (bit, bit + 1))
        frame[height // 4 : height * 3 // 4, left:right] = 230 if number >> bit & 1 else 20
    return frame


def number_of(image: Image.Image) -> int:
    """Return the number that a frame made by `numbered` shows."""
    pixels = np.asarray(image.convert("L"), np.float32)
    height, width = pixels.shape
    blocks = [pixels[height * 2 // 5 : height * 3 // 5, :][:, _middle(width, bit)].mean() for bit in range(BITS)]
    return sum(int(level > 125) << bit for bit, level in enumerate(blocks))


def _middle(width: int, bit: int) -> slice:
    left, right = (width * k // (BITS + 1) for k in (bit, bit + 1))
    quarter = max(1, (right - left) // 4)
    return slice(left + quarter, right - quarter)


def write(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    fps: int = 25,
    codec: str = "h264",
    times_s: Sequence[float] | None = None,
    **options: str,
) -> Path:
    """Write `frames` as a video. `times_s` sets the time of each frame (variable frame rate)."""
    height, width, _ = frames[0].shape
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", 50
        if times_s is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for k, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times_s is not None:
                frame.pts, frame.time_base = round(times_s[k] * 1000), Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def rotate(source: Path, target: Path) -> Path:
    """Copy an MP4 and add a display matrix that rotates it by 90° clockwise, as a phone held upright does."""
    data = bytearray(source.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # version 0
    unit = 1 << 16
    data[matrix : matrix + 36] = struct.pack(">9i", 0, unit, 0, -unit, 0, 0, 0, 0, 1 << 30)
    target.write_bytes(data)
    return target


def trimmed(source: Path, target: Path, skipped_s: float) -> Path:
    """Copy an MP4 with an edit list that skips its beginning, like a video trimmed on a phone."""
    data = bytearray(source.read_bytes())

    def timescale(header: bytes) -> int:
        return int(struct.unpack_from(">I", data, data.index(header) + 4 + 12)[0])  # version 0

    entry = data.index(b"elst") + 4 + 8  # the only entry, version 0
    duration, start, rate = struct.unpack_from(">IiI", data, entry)
    moved = (duration - round(skipped_s * timescale(b"mvhd")), start + round(skipped_s * timescale(b"mdhd")), rate)
    struct.pack_into(">IiI", data, entry, *moved)
    target.write_bytes(data)
    return target


def delayed(source: Path, target: Path, delay_s: float) -> Path:
    """Copy an MP4 so that its first frame is shown `delay_s` later; the muxer writes an empty edit before it."""
    with av.open(str(source)) as read, av.open(str(target), "w") as out:
        stream = out.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.dts is not None:
                assert packet.pts is not None and packet.time_base is not None
                delay = int(Fraction(delay_s).limit_denominator(1000) / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts + delay, packet.dts + delay, stream
                out.mux(packet)
    return target


def polyglot(path: Path, mp4: Path, avi: Path) -> Path:
    """Write a file that is `mp4` to an MP4 reader and `avi` to an AVI reader.

    It starts with the AVI file, whose RIFF header is also an MP4 box of type `free`. The box's size is the number that
    the letters `RIFF` spell, 1.38 GB; the MP4 file follows after it. The gap is a hole and takes no space on the disk.
    """
    offset = int.from_bytes(b"RIFF")
    with path.open("wb") as file:
        data = avi.read_bytes()
        file.write(data[:4] + b"free" + data[8:])
        file.seek(offset)
        file.write(_moved(mp4.read_bytes(), offset))
    return path


def _moved(mp4: bytes, offset: int) -> bytes:
    """Return the MP4 data with the positions of its chunks increased by `offset`."""
    data, table = bytearray(mp4), mp4.index(b"stco") + 8  # type, version and flags; then a count and the positions
    (count,) = struct.unpack_from(">I", data, table)
    positions = struct.unpack_from(f">{count}I", data, table + 4)
    struct.pack_into(f">{count}I", data, table + 4, *(position + offset for position in positions))
    return bytes(data)
