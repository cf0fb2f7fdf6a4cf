"""Turns -> padded batches of token ids, the ids to predict, and what each token refers to."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import sentencepiece
import torch
import torch.nn.functional as F
from torch import Tensor

from workers.demo import examples, language
from workers.demo.examples import Example
from workers.demo.training import tokens
from workers.demo.training.model import DemoModel, Tokens

IGNORE = -100

Vocabulary = sentencepiece.SentencePieceProcessor
NumberTokens = Callable[[list[str], int], list[int]]
"""Maps a turn's pieces, and the index at which its answer begins, to one number per piece."""


@dataclass(frozen=True)
class Batch:
    """Turns padded to one length. Images are not included; they follow the first token."""

    ids: Tensor  # [batch, length]
    targets: Tensor  # [batch, length]: the id to predict, or IGNORE outside the answer
    numbers: Tensor  # [batch, length]: the frame, or the requested change, that each token refers to, or IGNORE


def frame_numbers(pieces: list[str], answer_start: int) -> list[int]:
    """Return the frame number that each piece of a summary's turn refers to: the last one named before it.

    Pieces within a frame's name, except its last, get IGNORE. The answer begins with frame 1.
    """
    numbers, current, index = [], IGNORE, 0
    while index < len(pieces):
        current = 1 if index == answer_start else current
        last = index
        if pieces[index : index + 2] == ["▁frame", "▁"]:
            last = index + 2
            while last < len(pieces) and pieces[last].isdigit():
                last += 1
            current = int("".join(pieces[index + 2 : last]) or IGNORE)
        numbers += [IGNORE] * (last - index - 1) + [current]
        index = max(last, index + 1)
    return numbers


def request_numbers(pieces: list[str], answer_start: int) -> list[int]:
    """Return the number, from 1, of the requested change that each piece refers to; 0 before the first.

    Prompt and answer are numbered separately.
    """
    numbers: list[int] = []
    halves = (pieces[:answer_start], language.request_starts), (pieces[answer_start:], language.sentence_starts)
    for part, find_starts in halves:
        words = [piece.replace("▁", " ") for piece in part]
        starts, ends = find_starts("".join(words)), accumulate(map(len, words))
        numbers += [bisect_left(starts, end) for end in ends]
    return numbers


def make_batch(turns: Sequence[Example], vocabulary: Vocabulary, number: NumberTokens = frame_numbers) -> Batch:
    close = vocabulary.piece_to_id(tokens.CHAT_CLOSE)
    rows, numbers = [], []
    for prompt, answer in turns:
        prompt_ids = [vocabulary.bos_id(), *vocabulary.encode(examples.chat_turn(prompt))]
        answer_ids = [*vocabulary.encode(answer), close]
        rows.append((prompt_ids + answer_ids[:-1], [IGNORE] * (len(prompt_ids) - 1) + answer_ids))
        numbers.append(number(vocabulary.id_to_piece(rows[-1][0]), len(prompt_ids)))
    length = max(len(ids) for ids, _ in rows)
    return Batch(
        ids=torch.tensor([padded(ids, length, close) for ids, _ in rows]),
        targets=torch.tensor([padded(targets, length, IGNORE) for _, targets in rows]),
        numbers=torch.tensor([padded(row, length, IGNORE) for row in numbers]),
    )


def padded(row: list[int], length: int, value: int) -> list[int]:
    return row + [value] * (length - len(row))


def answer_loss(model: DemoModel, batch: Batch, image: Tensor | None) -> tuple[Tensor, list[Tokens]]:
    """Return the mean cross entropy of the answers, and every layer's output."""
    outputs = model.layer_outputs(batch.ids, image)
    answered = batch.targets != IGNORE
    states = model.model.norm(outputs[-1].text[answered])
    return F.cross_entropy(model.output(states), batch.targets[answered]), outputs
