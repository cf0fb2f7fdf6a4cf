"""No input, however long, causes a context error. `FakeCaptioner` counts words and rejects what does not fit."""

import pytest
from PIL import Image

from service.contract.errors import InvalidOption
from tests.fake_captioner import FakeCaptioner
from workers.models.engine import Turn
from workers.roles.context_budget import cut_at_sentence, grouped, with_images

IMAGE = Image.new("RGB", (100, 100))


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


async def test_groups_are_consecutive_and_fit() -> None:
    captioner = FakeCaptioner(context_tokens=400)
    descriptions = [(float(k), f"text {k} " + "word " * (k % 30)) for k in range(200)]
    groups = await grouped(descriptions, captioner, answer_tokens=100)
    assert [d[0] for group in groups for d in group] == [float(k) for k in range(200)]
    assert all(len(group) >= 2 for group in groups[:-1])
    for group in groups:
        assert sum(words(text) + 8 for _, text in group) <= 300


async def test_groups_of_overlong_descriptions_still_hold_two_each() -> None:
    captioner = FakeCaptioner(context_tokens=300)
    groups = await grouped([(float(k), "many words. " * 500) for k in range(5)], captioner, answer_tokens=100)
    assert [len(group) for group in groups] == [2, 2, 1]


async def test_the_number_of_crops_is_reduced_until_the_answer_fits() -> None:
    async def hd_num(context_tokens: int, requested: int | None = None) -> int | None:
        turn = Turn("", hd_num=requested, max_tokens=512)
        return (await with_images(FakeCaptioner(context_tokens=context_tokens), turn, [IMAGE], 9)).hd_num

    assert await hd_num(4096) == 9
    assert await hd_num(1000) == 4  # 50 tokens per crop
    assert await hd_num(600) == 1
    assert await hd_num(600, requested=7) == 7, "a requested number is not reduced"


async def test_images_of_models_without_crops_are_scaled_down() -> None:
    class ByArea(FakeCaptioner):
        async def prompt_tokens(self, turn: Turn) -> int:
            return 100 + sum(image.width * image.height // 100 for image in turn.images)

    turn, captioner = Turn("", max_tokens=512), ByArea()
    captioner.takes_hd_num = False
    for context_tokens, sides in [(1100, 100), (1000, 70), (900, 35), (500, 15)]:
        captioner.context_tokens = context_tokens
        fitted = await with_images(captioner, turn, [IMAGE, IMAGE], 9)
        assert [image.size for image in fitted.images] == [(sides, sides)] * 2, context_tokens
        assert fitted.hd_num is None
    with pytest.raises(InvalidOption, match="hd_num"):
        await with_images(captioner, Turn("", hd_num=4), [IMAGE], 9)
