"""What is refused: the error names the container or the codec and the reason that docs/media.md gives."""

import io
import re
from pathlib import Path

import pytest

from service.contract.errors import UnsupportedMedia
from service.contract.sandbox.formats import EXCLUDED_CODECS, EXCLUDED_FORMATS
from service.contract.sandbox.probe import probe
from service.contract.sandbox.signatures import EXCLUDED, detect
from tests.media.clips import clip

REFUSED = (
    clip("a.avi", "rawvideo", pix_fmt="bgr24"),
    clip("a.avi", "huffyuv", pix_fmt="yuv422p"),
    clip("a.avi", "magicyuv", pix_fmt="yuv444p"),
    clip("a.avi", "utvideo", pix_fmt="yuv422p"),
    clip("a.avi", "cinepak", pix_fmt="rgb24"),
    clip("a.mov", "qtrle", pix_fmt="rgb24"),
    clip("a.mov", "cfhd", pix_fmt="yuv422p10le", size=(256, 144)),
    clip("a.mov", "jpeg2000"),
    clip("a.mov", "dvvideo", size=(720, 576)),
)


@pytest.mark.parametrize("clip", REFUSED, ids=lambda clip: clip.how.codec)
async def test_a_refused_codec_is_named_with_its_reason(clip, tmp_path: Path) -> None:
    codec = clip.how.codec
    with pytest.raises(UnsupportedMedia, match=re.escape(f"{codec}: {EXCLUDED_CODECS[codec]}")):
        await probe(clip.write(tmp_path))


def test_every_refused_container_is_recognised() -> None:
    starts = [*EXCLUDED, b"RIFF\0\0\0\0WEBPVP8 ", b"\0\0\0\x20ftypavis", b"\0\0\0\x20ftyphevc"]
    assert {detect(io.BytesIO(start + bytes(100))) for start in starts} == {(None, name) for name in EXCLUDED_FORMATS}
