"""From a decoded frame to the picture that the model sees. The decode child loads this file by its path.

The picture is progressive, upright, in BT.709 colours, with square pixels, and black where the frame is transparent.
"""

import runpy
import struct
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from PIL import Image

Neighbour = Callable[[], av.VideoFrame | None]
HDR = runpy.run_path(str(Path(__file__).with_name("hdr.py")))
BT709 = 1
MATRICES = frozenset({BT709, 4, 5, 6, 7, 9})
"""Colour matrices that swscale knows (ITU-T H.273); 9 is BT.2020."""
LARGEST_SD_WIDTH, LARGEST_SD_HEIGHT = 1279, 576
"""A frame that does not state its colour matrix is BT.709 above this size, BT.601 up to it, as in mpv."""


class Pictures:
    """Makes pictures from the frames of one video. No side is longer than `max_side_px`.

    `pixel_aspect` is the width of a pixel divided by its height.
    """

    def __init__(self, max_side_px: int, pixel_aspect: float) -> None:
        self._max_side_px = max_side_px
        self._aspect = pixel_aspect
        self._reformatter = VideoReformatter()

    def picture(self, frame: av.VideoFrame, before: av.VideoFrame | None, after: Neighbour) -> Image.Image:
        """Return the picture of `frame`. Interlaced frames also need the frames next to them."""
        quarter_turns = round(frame.rotation / 90) % 4
        if frame.interlaced_frame:
            frame = deinterlaced(frame, before, after())
        width, height = squared_size(frame.width, frame.height, self._aspect, self._max_side_px)
        if HDR["needs_mapping"](frame.color_trc, frame.color_primaries):
            image = self._mapped(frame, width, height)
        else:
            image = self._converted(frame)
        if image.size != (width, height):
            enlarged = width > image.width or height > image.height
            image = image.resize((width, height), Image.Resampling.BILINEAR if enlarged else Image.Resampling.BOX)
        return image.rotate(90 * quarter_turns, expand=True) if quarter_turns else image

    def _converted(self, frame: av.VideoFrame) -> Image.Image:
        if not has_alpha(frame):
            return Image.fromarray(self._pixels(frame, "rgb24"))
        pixels = self._pixels(frame, "rgba").astype(np.uint16)  # [height, width, 4]
        on_black = (pixels[..., :3] * pixels[..., 3:] + 127) // 255
        return Image.fromarray(on_black.astype(np.uint8))

    def _mapped(self, frame: av.VideoFrame, width: int, height: int) -> Image.Image:
        reduced = min(width, frame.width), min(height, frame.height)
        pixels = self._pixels(frame, "rgb48le", reduced)
        return Image.fromarray(HDR["to_sdr"](pixels, frame.color_trc, frame.color_primaries, peak_nits(frame)))

    def _pixels(self, frame: av.VideoFrame, format_: str, size: tuple[int, int] | None = None) -> npt.NDArray[np.uint8]:
        matrix = frame.colorspace if frame.colorspace in MATRICES else _usual_matrix(frame)
        width, height = size or (frame.width, frame.height)
        is_rgb = frame.format.is_rgb
        converted = self._reformatter.reformat(
            frame,
            width,
            height,
            format_,
            src_colorspace=None if is_rgb else matrix,
            interpolation=Interpolation.AREA if size else None,
        )
        return converted.to_ndarray()  # type: ignore[return-value]


def squared_size(width: int, height: int, aspect: float, max_side_px: int) -> tuple[int, int]:
    """Return the size with square pixels, reduced so that no side is longer than `max_side_px`.

    `aspect` is the width of a pixel divided by its height. The shorter side of a pixel is stretched.
    """
    exact_width, exact_height = width * max(aspect, 1.0), height * max(1 / aspect, 1.0)
    factor = min(1.0, max_side_px / max(exact_width, exact_height))
    return max(1, round(exact_width * factor)), max(1, round(exact_height * factor))


def deinterlaced(frame: av.VideoFrame, before: av.VideoFrame | None, after: av.VideoFrame | None) -> av.VideoFrame:
    """Return the frame without combing, with FFmpeg's filter `yadif`: one frame for each frame."""
    graph = av.filter.Graph()
    graph.threads = 1
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000))
    graph.link_nodes(source, graph.add("yadif", "send_frame:auto:interlaced"), graph.add("buffersink")).configure()
    usable = [other if other is not None and _same_kind(frame, other) else None for other in (before, after)]
    sequence = [each for each in (usable[0], frame, usable[1]) if each is not None]
    for each in sequence:
        graph.vpush(each)
    graph.vpush(None)
    wanted = sequence.index(frame)
    return [graph.vpull() for _ in range(wanted + 1)][-1]


def _same_kind(frame: av.VideoFrame, other: av.VideoFrame) -> bool:
    return (other.width, other.height, other.format.name) == (frame.width, frame.height, frame.format.name)


def has_alpha(frame: av.VideoFrame) -> bool:
    """Return whether pixels of the frame may be transparent."""
    return frame.format.name == "pal8" or any(component.is_alpha for component in frame.format.components)


def _usual_matrix(frame: av.VideoFrame) -> int:
    is_hd = frame.width > LARGEST_SD_WIDTH or frame.height > LARGEST_SD_HEIGHT
    return int(Colorspace.ITU709 if is_hd else Colorspace.ITU601)


def peak_nits(frame: av.VideoFrame) -> float:
    """Return how bright the video gets: its MaxCLL, or else the peak of the display that it was made on, or 1000."""
    try:
        side_data: Iterable[Any] = iter(frame.side_data)
        data = {each.type.name: bytes(each) for each in side_data}
    except ValueError:  # PyAV does not know the type of some side data
        return 1000.0
    if len(light := data.get("CONTENT_LIGHT_LEVEL", b"")) >= 8 and (max_cll := struct.unpack_from("I", light)[0]):
        return float(max_cll)
    if len(display := data.get("MASTERING_DISPLAY_METADATA", b"")) >= 88:
        numerator, denominator = struct.unpack_from("ii", display, 72)
        if numerator > 0 and denominator > 0:
            return float(numerator / denominator)
    return 1000.0
