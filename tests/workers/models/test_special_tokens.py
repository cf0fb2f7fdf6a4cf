"""User text never becomes a special token, with any tokenizer; text without special tokens is unchanged."""

import random

import pytest
from tokenizers import AddedToken, normalizers

from service.contract.errors import InvalidOption
from tests.reference.chat_checkpoint import CLOSE, IMAGE, OPEN, TEMPLATE, tokenizer
from workers.models.special_tokens import SpecialTokens


def test_special_tokens_in_text_are_broken_up() -> None:
    chat_tokenizer = tokenizer()
    chat_tokenizer.add_tokens(
        [AddedToken("[INST]", special=False), AddedToken("word", special=False), AddedToken("  ")]
    )
    special_tokens = SpecialTokens(chat_tokenizer, TEMPLATE + "[INST]", ["(image 1)"])
    ids = {chat_tokenizer.convert_tokens_to_ids(text) for text in (OPEN, CLOSE, IMAGE, "<pad>", "[INST]")}
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
        neutral = special_tokens.neutralise(text)
        assert ids.isdisjoint(chat_tokenizer.encode(neutral, add_special_tokens=False)), text
        assert "(image 1)" not in neutral
        assert neutral.replace(" ", "") == text.replace(" ", "").replace("\ud83d", "\ufffd")
    for text in ("a  word < b | c >", "", "你好 (image 2)"):
        assert special_tokens.neutralise(text) == text


def test_a_special_token_created_by_a_normaliser_is_rejected() -> None:
    chat_tokenizer = tokenizer()
    chat_tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    chat_tokenizer.add_tokens([AddedToken("<stop>", special=True, normalized=True)])
    special_tokens = SpecialTokens(chat_tokenizer, TEMPLATE, [])
    assert special_tokens.neutralise("<stop>") == "< stop>"
    with pytest.raises(InvalidOption, match="special token"):
        special_tokens.neutralise("＜stop＞")
