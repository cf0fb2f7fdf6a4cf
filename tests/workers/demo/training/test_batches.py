"""Batches: what each token of an example must predict."""

from pathlib import Path

import pytest
import sentencepiece

from workers.demo.examples import Example
from workers.demo.training import batches

TOKENIZER = Path(batches.__file__).parents[1] / "checkpoint" / "tokenizer.model"
IGNORE = batches.IGNORE


@pytest.fixture(scope="module")
def vocabulary() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER))


def test_a_summary_token_refers_to_the_last_named_frame() -> None:
    pieces = ["frame", ":", "▁frame", "▁", "1", "2", "▁at", "▁", "7", "▁frame", "▁", "3", "The", "▁video"]
    none, name = IGNORE, [IGNORE] * 3
    assert batches.frame_numbers(pieces, 12) == [none, none, *name, 12, 12, 12, 12, none, none, 3, 1, 1]


def test_a_recaption_token_refers_to_the_last_requested_change(
    vocabulary: sentencepiece.SentencePieceProcessor,
) -> None:
    prompt = vocabulary.encode("<s>a red star moves left and goes up", out_type=str)
    text = "The red star. First, the red star moves to the left. Then the red star moves up."
    answer = vocabulary.encode(text, out_type=str)
    numbers = batches.request_numbers(prompt + answer, len(prompt))
    texts: list[str] = ["", "", "", "", "", ""]
    for index, (piece, number) in enumerate(zip(prompt + answer, numbers, strict=True)):
        texts[number + (3 if index >= len(prompt) else 0)] += piece.replace("▁", " ")
    assert [text.strip() for text in texts] == [
        "<s>a red star", "moves left and", "goes up",
        "The red star.", "First, the red star moves to the left.", "Then the red star moves up.",
    ]  # fmt: skip


def test_only_the_answer_is_predicted(vocabulary: sentencepiece.SentencePieceProcessor) -> None:
    answers = ("A red star.", "A pink circle on a black background.")
    turns = [Example(prompt, answer) for prompt, answer in zip(("What is it?", "What?"), answers, strict=True)]
    batch = batches.make_batch(turns, vocabulary)
    assert len(batch.ids) == 2 and batch.ids.shape == batch.targets.shape == batch.numbers.shape
    for targets, answer in zip(batch.targets, answers, strict=True):
        predicted = targets[targets != IGNORE].tolist()
        assert vocabulary.decode(predicted[:-1]) == answer
        assert vocabulary.id_to_piece(predicted[-1]) == "[UNUSED_TOKEN_145]"
