"""The pixels of sampled frames: colours, HDR, interlaced video, the shape of pixels, and transparency."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.filter import Graph
from PIL import Image

from service.contract.sandbox.probe import VideoInfo, probe
from service.contract.sandbox.subprocesses import ChildStarter
from tests.media import colours
from tests.media.clips import HLG, PQ
from tests.media.encoding import Encoding, encode
from workers.video.frames import DecodeLimits, Frame, Part, open_frames

pytestmark = pytest.mark.asyncio(loop_scope="module")
HEIGHT, PATCH = 96, 32
RED, GREEN, BLUE, YELLOW = (0.8, 0.1, 0.1), (0.1, 0.7, 0.1), (0.1, 0.2, 0.8), (0.8, 0.8, 0.1)
GREYS = ((0.0,) * 3, (0.25,) * 3, (0.5,) * 3, (0.75,) * 3, (1.0,) * 3)
PATCHES = np.array([RED, GREEN, BLUE, YELLOW, *GREYS])
MATRICES = {"601": 6, "709": 1, "2020": 9}
"""Their numbers in ISO/IEC 23091-2."""
BLACK_OR_COLOUR = 40
FIELDS = {"flags": "+ildct+ilme", "b": "4M"}
H264_FIELDS = {"x264-params": "interlaced=1:log-level=none", "crf": "4"}


def picture(patches: Any) -> np.ndarray:
    """Return vertical stripes of the given colours, float [HEIGHT, PATCH * count, 3]."""
    return np.repeat(np.broadcast_to(np.asarray(patches), (HEIGHT, len(patches), 3)), PATCH, axis=1)


def patches_of(image: Image.Image, count: int) -> np.ndarray:
    """Return the mean colour of the middle of each stripe, from 0 to 1."""
    pixels = np.asarray(image, np.float64) / 255
    width = pixels.shape[1] / count
    middles = [slice(round(width * (k + 0.25)), round(width * (k + 0.75))) for k in range(count)]
    return np.array([pixels[8:-8, middle].mean((0, 1)) for middle in middles])


async def sample(path: Path, starter: ChildStarter) -> tuple[VideoInfo, list[Frame]]:
    """Return all frames of a clip."""
    info = await probe(path, starter=starter)
    async with open_frames(path, info, Part(interval_s=0.001, max_samples=100), DecodeLimits(), starter) as frames:
        return info, [frame async for frame in frames]


async def shown_patches(path: Path, planes: np.ndarray, starter: ChildStarter, **how: Any) -> np.ndarray:
    """Return the colours of the stripes in a clip whose two frames consist of these YUV samples."""
    encoding = Encoding(size=(planes.shape[2], planes.shape[1]), **how)
    encode(path, [colours.frame(planes, encoding.pix_fmt) for _ in range(2)], encoding)
    _, frames = await sample(path, starter)
    return patches_of(frames[-1].image, planes.shape[2] // PATCH)


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", MATRICES)
async def test_colours_follow_the_matrix_and_the_range(
    tmp_path: Path, matrix: str, full_range: bool, starter: ChildStarter
) -> None:
    planes = colours.yuv(picture(PATCHES), matrix, full_range=full_range)
    context = {"colorspace": MATRICES[matrix], "color_range": 2 if full_range else 1}
    shown = await shown_patches(
        tmp_path / "a.mp4", planes, starter, pix_fmt="yuv444p", options={"crf": "4"}, context=context
    )
    assert np.abs(shown - PATCHES).max() < 0.03


@pytest.mark.parametrize(("transfer", "tags"), [(colours.pq, PQ), (colours.hlg, HLG)], ids=["pq", "hlg"])
async def test_hdr_is_shown_as_sdr(tmp_path: Path, transfer: Any, tags: dict[str, int], starter: ChildStarter) -> None:
    """An SDR picture that was converted to HDR looks like the original again, and highlights stay in order."""
    light = colours.nits(picture(PATCHES))
    highlights = picture([[nits] * 3 for nits in (300, 600, 990)])
    planes = colours.yuv(transfer(np.concatenate([light, highlights], axis=1)), "2020", bits=10)
    shown = await shown_patches(
        tmp_path / "a.mp4", planes, starter, codec="libx265", pix_fmt="yuv444p10le", context=tags, options={"crf": "4"}
    )
    sdr, bright = shown[: len(PATCHES)], shown[len(PATCHES) :].mean(1)
    assert np.abs(sdr - PATCHES).max() < 0.11
    assert np.ptp(shown[len(RED) + 1 :], axis=1).max() < 0.03, "greys stay grey"
    assert list(bright) == sorted(bright) and bright[0] >= sdr[-1].mean() - 0.01, "highlights are not darker than white"


def interlaced(number: int, *, top_first: bool) -> np.ndarray:
    """Return a frame whose two fields show a bar that moves to the right, 8 pixels from field to field."""
    frame = np.full((HEIGHT, 160, 3), 40, np.uint8)
    for field in (0, 1):
        left = 8 * (2 * number + field) + 8
        frame[field ^ (not top_first) :: 2, left : left + 24] = 220
    return frame


def as_fields(pictures: Sequence[np.ndarray], order: str) -> list[av.VideoFrame]:
    """Return the pictures as interlaced frames; `order` is `tff` or `bff`: the top or the bottom field comes first."""
    frames = []
    for picture in pictures:
        frame, graph = av.VideoFrame.from_ndarray(picture, format="rgb24"), Graph()
        source = graph.add_buffer(template=frame, time_base=Fraction(1, 25))
        graph.link_nodes(source, graph.add("setfield", order), graph.add("buffersink")).configure()
        graph.vpush(frame)
        frames.append(graph.vpull())
    return frames


@pytest.mark.parametrize("order", ["tff", "bff"])
@pytest.mark.parametrize(
    ("name", "codec", "options"), [("a.mp4", "h264", H264_FIELDS), ("a.mpg", "mpeg2video", FIELDS)]
)
async def test_interlaced_video_is_deinterlaced(
    tmp_path: Path, starter: ChildStarter, *, name: str, codec: str, options: dict[str, str], order: str
) -> None:
    encoding = Encoding(codec, size=(160, HEIGHT), options=options)
    drawn = [interlaced(number, top_first=order == "tff") for number in range(7)]
    _, frames = await sample(encode(tmp_path / name, as_fields(drawn, order), encoding), starter)
    assert len(frames) == 7
    for number, frame in enumerate(frames[1:-1], 1):
        grey = np.asarray(frame.image.convert("L"), np.float64)[8:-8]
        assert np.abs(np.diff(grey, axis=0)).mean() < 3, "no comb"
        bar = np.flatnonzero(grey.mean(0) > 130)
        assert bar[0] == pytest.approx(16 * number + 8, abs=3), "the first field's picture"


async def test_anamorphic_pixels_become_square(tmp_path: Path, starter: ChildStarter) -> None:
    picture = np.zeros((HEIGHT, 144, 3), np.uint8)
    picture[16:80, 40:80] = 255  # 40 x 64 pixels, which are 8/5 as wide as high: a square
    encoding = Encoding(size=(144, HEIGHT), context={"sample_aspect_ratio": Fraction(8, 5)})
    frame = [av.VideoFrame.from_ndarray(picture, format="rgb24") for _ in range(3)]
    info, frames = await sample(encode(tmp_path / "a.mp4", frame, encoding), starter)
    grey = np.asarray(frames[0].image.convert("L"), np.float64)
    width, height = ((grey > 128).any(axis).sum() for axis in (0, 1))
    assert width == pytest.approx(height, abs=3)
    assert frames[0].image.size == info.shown_size
    assert frames[0].image.width / frames[0].image.height == pytest.approx(2.4, abs=0.03)


TRANSPARENT = (("prores.mov", "prores_ks", "yuva444p10le"), ("ffv1.mkv", "ffv1", "yuva444p"), ("a.png", "apng", "rgba"))


def half_transparent() -> np.ndarray:
    """Return a red frame, uint8 [HEIGHT, 160, 4], whose right half is transparent."""
    frame = np.zeros((HEIGHT, 160, 4), np.uint8)
    frame[..., 0], frame[:, :80, 3] = 230, 255
    return frame


def check_left_half_is_red(frames: Sequence[Frame]) -> None:
    left, right = patches_of(frames[-1].image, 2) * 255
    assert left == pytest.approx((230, 0, 0), abs=BLACK_OR_COLOUR)
    assert right == pytest.approx((0, 0, 0), abs=BLACK_OR_COLOUR)


@pytest.mark.parametrize(("name", "codec", "pix_fmt"), TRANSPARENT)
async def test_transparent_pixels_are_black(
    tmp_path: Path, name: str, codec: str, pix_fmt: str, starter: ChildStarter
) -> None:
    container = "apng" if codec == "apng" else None
    options = {"profile": "4444"} if codec == "prores_ks" else {}
    encoding = Encoding(codec, pix_fmt, (160, HEIGHT), container=container, options=options)
    pictures = [av.VideoFrame.from_ndarray(half_transparent(), format="rgba") for _ in range(3)]
    check_left_half_is_red((await sample(encode(tmp_path / name, pictures, encoding), starter))[1])


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
async def test_transparent_pixels_of_animations_are_black(tmp_path: Path, name: str, starter: ChildStarter) -> None:
    pictures = [Image.fromarray(half_transparent(), "RGBA") for _ in range(3)]
    for number, image in enumerate(pictures):
        image.putpixel((number, 0), (0, 0, 255, 255))  # otherwise the encoders merge equal frames
    pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:], duration=100, disposal=2)
    check_left_half_is_red((await sample(tmp_path / name, starter))[1])
