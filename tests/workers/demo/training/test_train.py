"""What training asks of each token, and that its processes learn the same."""

from pathlib import Path

import pytest
import sentencepiece

from workers.demo.training import train

TOKENIZER = Path(train.__file__).parents[1] / "checkpoint" / "tokenizer.model"
IGNORE = train.IGNORE


@pytest.fixture(scope="module")
def sp() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER))


def test_each_token_of_a_summary_speaks_of_the_frame_named_last() -> None:
    told = ["frame", ":", "▁frame", "▁", "1", "2", "▁at", "▁", "7", "▁frame", "▁", "3", "The", "▁video"]
    none, named = IGNORE, [IGNORE] * 3
    assert train.frames_of(told, 12) == [none, none, *named, 12, 12, 12, 12, none, none, 3, 1, 1]


def test_each_token_of_a_recaption_speaks_of_the_wish_named_last(sp: sentencepiece.SentencePieceProcessor) -> None:
    asked = sp.encode("<s>a red star moves left and goes up", out_type=str)
    told = sp.encode("The red star. First, the red star moves to the left. Then the red star moves up.", out_type=str)
    wishes = train.wishes_of(asked + told, len(asked))
    spoken: list[str] = ["", "", "", "", "", ""]
    for k, (piece, wish) in enumerate(zip(asked + told, wishes, strict=True)):
        spoken[wish + (3 if k >= len(asked) else 0)] += piece.replace("▁", " ")
    assert [text.strip() for text in spoken] == [
        "<s>a red star", "moves left and", "goes up",
        "The red star.", "First, the red star moves to the left.", "Then the red star moves up.",
    ]  # fmt: skip


def test_only_the_answer_is_learned(sp: sentencepiece.SentencePieceProcessor) -> None:
    batch = train.batch_of([("What is it?", "A red star."), ("What?", "A pink circle on a black background.")], sp)
    assert len(batch.ids) == 2 and batch.ids.shape == batch.targets.shape == batch.parts.shape
    for targets, answer in zip(batch.targets, ("A red star.", "A pink circle on a black background."), strict=True):
        learned = targets[targets != IGNORE].tolist()
        assert sp.decode(learned[:-1]) == answer
        assert sp.id_to_piece(learned[-1]) == "[UNUSED_TOKEN_145]"


def test_rates_rise_then_fall_to_zero() -> None:
    assert train.rate(0, 0.0) == pytest.approx(1 / train.WARMUP_STEPS)
    assert train.rate(1000, 0.25) == pytest.approx(0.75)
    assert train.rate(1000, 1.0) == 0.0
