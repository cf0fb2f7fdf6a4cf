"""Inputs of the reading layers: the last new layers, in which text reads what the comparing layers have found.

Below them nothing is trained any more. Their inputs are computed once and used for many steps, which is much faster.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.demo import examples
from workers.demo.examples import Example
from workers.demo.training.batches import IGNORE, Batch, Vocabulary, make_batch
from workers.demo.training.data import PictureBatch, decode_state
from workers.demo.training.fast import cells
from workers.demo.training.fast.cells import Column, ColumnBatch
from workers.demo.training.fast.layers import READING
from workers.demo.training.model import DemoModel, Tokens
from workers.demo.world import CHANGES

PAIRS, SINGLES = 16, 6


@dataclass(frozen=True)
class ColumnTurns:
    below: Tokens  # half precision
    turns: Batch
    columns: ColumnBatch


@dataclass(frozen=True)
class PictureTurns:
    """Turns of the other image roles, with the logits of the old model where it answers."""

    below: Tokens  # half precision
    answered: Tensor  # [batch, length], bool
    expected: Tensor  # [answered tokens, vocabulary], half precision


def half(x: Tokens) -> Tokens:
    return Tokens(x.text.half(), None if x.image is None else x.image.half())


def single(x: Tokens) -> Tokens:
    return Tokens(x.text.float(), None if x.image is None else x.image.float())


@torch.no_grad()
def below_reading(model: DemoModel, turns: Batch, image: Tensor) -> Tokens:
    """Return the inputs of the first reading layer."""
    start = Tokens(model.model.tok_embeddings(turns.ids), image)
    return half(model.outputs_between(start, 0, READING)[-1])


def column_turns(model: DemoModel, drawn: list[Column], vocabulary: Vocabulary) -> ColumnTurns:
    columns = cells.make_batch(drawn, model)
    turns = make_batch(columns.examples, vocabulary)
    return ColumnTurns(below_reading(model, turns, columns.image), turns, columns)


def examples_of(kinds: Sequence[int], states: Tensor, rng: random.Random) -> list[Example]:
    """Return a differential for each of the first `PAIRS` pictures, and a first frame for each of the others."""
    shown = [[decode_state(row) for row in rows] for rows in states.numpy()]
    return [
        examples.differential(rng, CHANGES[kind], before, after)
        for kind, (before, after) in zip(kinds[:PAIRS], shown[:PAIRS], strict=True)
    ] + [examples.first_frame(rng, state) for state, _ in shown[PAIRS:]]


@torch.no_grad()
def picture_turns(
    model: DemoModel, teacher: DemoModel, drawn: PictureBatch, vocabulary: Vocabulary, rng: random.Random
) -> PictureTurns:
    turns = make_batch(examples_of(drawn.kinds.tolist(), drawn.states, rng), vocabulary)
    answered = turns.targets != IGNORE
    merged = teacher.see(drawn.pixels)[1]
    image = teacher.image_tokens(merged, merged[:, None, None])
    expected = teacher.output(teacher.hidden(turns.ids, image)[answered])
    return PictureTurns(below_reading(model, turns, image), answered, expected.half())
