"""Decodes animated WebP with Pillow (libwebp). The decode child loads this file by its path."""

import struct
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import av
import numpy as np
from PIL.WebPImagePlugin import WebPImageFile

RIFF_HEADER_BYTES = 12


def frames(path: str) -> Iterator[av.VideoFrame]:
    """Decode the frames in order. A damaged frame ends them."""
    with WebPImageFile(BytesIO(whole_chunks(Path(path).read_bytes()))) as image:
        for number in range(image.n_frames):
            try:
                image.seek(number)
                pixels = np.asarray(image.convert("RGBA"))
            except (OSError, EOFError, ValueError):
                return
            yield av.VideoFrame.from_ndarray(pixels, format="rgba")


def whole_chunks(data: bytes) -> bytes:
    """Return the file without a chunk whose end is missing. libwebp refuses a file that is shorter than it states."""
    end = RIFF_HEADER_BYTES
    while len(data) >= end + 8 and len(data) >= (after := end + 8 + _even(struct.unpack_from("<I", data, end + 4)[0])):
        end = after
    return data[:4] + struct.pack("<I", end - 8) + data[8:end]


def _even(size: int) -> int:
    return size + size % 2
