"""Decodes animated WebP with Pillow (libwebp). The decode child loads this file by its path."""

from collections.abc import Iterator

import av
import numpy as np
from PIL.WebPImagePlugin import WebPImageFile


def frames(path: str) -> Iterator[av.VideoFrame]:
    """Decode the frames in order. A damaged frame ends them."""
    with WebPImageFile(path) as image:
        for number in range(image.n_frames):
            try:
                image.seek(number)
                pixels = np.asarray(image.convert("RGBA"))
            except (OSError, EOFError, ValueError):
                return
            yield av.VideoFrame.from_ndarray(pixels, format="rgba")
