"""Codecs that are refused: the error names the codec and the reason that docs/media.md gives."""

import re
from pathlib import Path

import pytest

from service.contract.errors import UnsupportedMedia
from service.contract.sandbox.formats import EXCLUDED_CODECS
from service.contract.sandbox.probe import probe
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
