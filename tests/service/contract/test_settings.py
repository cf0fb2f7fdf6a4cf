"""Settings of both processes that are lists of names."""

import pytest
from pydantic import ValidationError

from service.contract.sandbox.formats import CODECS, FORMATS
from service.contract.settings import SharedSettings


def test_all_formats_and_codecs_are_accepted_by_default() -> None:
    limits = SharedSettings().video_limits
    assert (limits.formats, limits.codecs) == (set(FORMATS), set(CODECS))


def test_formats_and_codecs_can_be_narrowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORMATS", "mov, matroska")
    monkeypatch.setenv("CODECS", "h264,av1")
    limits = SharedSettings().video_limits
    assert (limits.formats, limits.codecs) == ({"mov", "matroska"}, {"h264", "av1"})


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("FORMATS", "mov,mp4", "no format is named mp4; the names are mov"),
        ("CODECS", "h265", "no codec is named h265"),
        ("FORMATS", "", "at least one format"),
    ],
)
def test_unknown_names_and_empty_lists_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=reason):
        SharedSettings()
