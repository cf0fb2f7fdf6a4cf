"""docs/media.md lists exactly the formats that the code accepts and refuses, and the ones that these tests cover."""

from pathlib import Path

import pytest
from av.codec import Codec

from service.contract.sandbox.formats import CODECS, EXCLUDED_CODECS, EXCLUDED_FORMATS, FORMATS
from tests.media.clips import CLIPS, CONTAINERS_AND_CODECS, Clip

PAGE = (Path(__file__).parents[2] / "docs/media.md").read_text()
DEMUXERS = {
    **dict.fromkeys((".mp4", ".mov", ".3gp"), "mov"),
    **dict.fromkeys((".mkv", ".webm"), "matroska"),
    **dict.fromkeys((".ts", ".m2ts"), "mpegts"),
    **dict.fromkeys((".wmv", ".asf"), "asf"),
    ".mpg": "mpeg",
    ".ogv": "ogg",
    ".png": "apng",
}
"""FFmpeg's demuxers for the endings of the clips, if the name is not the same."""
UNTESTED = {"vp6", "vp6f", "vp6a", "wmv3", "vc1"}
"""Accepted codecs for which there is neither an encoder in PyAV nor one in Debian's FFmpeg."""


def demuxer(clip: Clip) -> str:
    suffix = Path(clip.name).suffix
    return DEMUXERS.get(suffix, suffix[1:])


def codec(clip: Clip) -> str:
    """Return FFmpeg's canonical name of the clip's codec."""
    return clip.how.codec if clip.encoder else Codec(clip.how.codec, "w").canonical_name


def quoted(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in dict.fromkeys(names))


def containers() -> str:
    rows = []
    for name, label in FORMATS.items():
        clips = [clip for clip in CONTAINERS_AND_CODECS if demuxer(clip) == name]
        endings = quoted([Path(clip.name).suffix for clip in clips])
        rows.append(f"| {label} | `{name}` | {endings} | {quoted([codec(clip) for clip in clips])} |")
    return "\n".join(rows)


def refused(reasons: dict[str, str], mark: str = "") -> str:
    return "\n".join(f"| {mark}{name}{mark} | {reason} |" for name, reason in reasons.items())


@pytest.mark.parametrize(
    "table",
    [containers(), refused(EXCLUDED_FORMATS), refused(EXCLUDED_CODECS, "`"), quoted(list(CODECS))],
    ids=["containers", "refused containers", "refused codecs", "codecs"],
)
def test_the_page_has_this_table(table: str) -> None:
    assert table in PAGE, f"docs/media.md should contain:\n{table}"


def test_every_accepted_format_has_a_clip() -> None:
    assert {demuxer(clip) for clip in CLIPS} == set(FORMATS)
    assert {codec(clip) for clip in CLIPS} == set(CODECS) - UNTESTED
    assert quoted(sorted(UNTESTED)) in PAGE
