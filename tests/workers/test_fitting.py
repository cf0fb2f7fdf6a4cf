"""No input length may raise a context error. `FakeCaptioner` counts words and refuses what does not fit."""

import pytest
from PIL import Image

from tests.fake_captioner import FakeCaptioner
from workers.fitting import crops_that_fit, cut_at_sentence, grouped


def words(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize(
    ("text", "tokens", "cut"),
    [
        ("One two. Three four five. Six.", 6, "One two. Three four five. Six."),
        ("One two. Three four five. Six.", 5, "One two. Three four five."),
        ("One two. Three four five. Six.", 4, "One two."),
        ("One two three four.", 3, "One two three"),
        ("One two.", 0, ""),
        ("", 5, ""),
    ],
)
def test_text_is_cut_at_a_sentence(text: str, tokens: int, cut: str) -> None:
    assert cut_at_sentence(text, tokens, words) == cut


def test_groups_are_consecutive_and_fit() -> None:
    captioner = FakeCaptioner(context_tokens=400)
    descriptions = [(float(k), f"text {k} " + "word " * (k % 30)) for k in range(200)]
    groups = grouped(descriptions, captioner, answer=100)
    assert [d[0] for group in groups for d in group] == [float(k) for k in range(200)]
    assert all(len(group) >= 2 for group in groups[:-1])
    for group in groups:
        assert sum(words(text) + 8 for _, text in group) <= 300


def test_descriptions_too_long_for_the_context_still_go_two_by_two() -> None:
    captioner = FakeCaptioner(context_tokens=300)
    groups = grouped([(float(k), "many words. " * 500) for k in range(5)], captioner, answer=100)
    assert [len(group) for group in groups] == [2, 2, 1]


def test_crops_are_lowered_until_there_is_room_to_answer() -> None:
    image = Image.new("RGB", (100, 100))
    assert crops_that_fit(FakeCaptioner(context_tokens=4096), image, None, 9, 512) == 9
    assert crops_that_fit(FakeCaptioner(context_tokens=1000), image, None, 9, 512) == 4  # 50 tokens a crop
    assert crops_that_fit(FakeCaptioner(context_tokens=600), image, None, 9, 512) == 1
    assert crops_that_fit(FakeCaptioner(context_tokens=600), image, 7, 9, 512) == 7, "asked for is asked for"
