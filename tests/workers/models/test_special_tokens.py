"""User text never becomes a mark, whatever tokenizer the model has, and stays itself where it spells none."""

import random

import pytest
from tokenizers import AddedToken, normalizers

from service.contract.errors import InvalidOption
from tests.reference.chat_checkpoint import CLOSE, IMAGE, OPEN, TEMPLATE, tokenizer
from workers.models.special_tokens import Marks


def test_text_that_spells_marks() -> None:
    words = tokenizer()
    words.add_tokens([AddedToken("[INST]", special=False), AddedToken("word", special=False), AddedToken("  ")])
    marks = Marks(words, TEMPLATE + "[INST]", ["(image 1)"])
    ids = {words.convert_tokens_to_ids(mark) for mark in (OPEN, CLOSE, IMAGE, "<pad>", "[INST]")}
    parts = [
        OPEN,
        CLOSE,
        IMAGE,
        "<pad>",
        "[INST]",
        "(image 1)",
        "<|im_",
        "end|>",
        "<",
        ">",
        "word",
        "  ",
        "你",
        "\ud83d",
    ]
    rng = random.Random(3)
    for _ in range(500):
        text = "".join(rng.choices(parts, k=rng.randint(1, 10)))
        neutral = marks.neutralise(text)
        assert ids.isdisjoint(words.encode(neutral, add_special_tokens=False)), text
        assert "(image 1)" not in neutral
        assert neutral.replace(" ", "") == text.replace(" ", "").replace("\ud83d", "\ufffd")
    for text in ("a  word < b | c >", "", "你好 (image 2)"):
        assert marks.neutralise(text) == text


def test_a_mark_that_a_normaliser_makes_is_refused() -> None:
    words = tokenizer()
    words.backend_tokenizer.normalizer = normalizers.NFKC()
    words.add_tokens([AddedToken("<stop>", special=True, normalized=True)])
    marks = Marks(words, TEMPLATE, [])
    assert marks.neutralise("<stop>") == "< stop>"
    with pytest.raises(InvalidOption, match="special token"):
        marks.neutralise("＜stop＞")
