"""How good the model in training is, on held-out pictures and texts, by its own plain forward pass.

Greedy answers are read back with `language.py`; the same measure through the whole service is bench/demo_quality.py.
"""

import random
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import sentencepiece
import torch
from torch import Tensor

from workers.demo import language
from workers.demo.training import samples, tokens
from workers.demo.training.data import SINGLE, unrecord
from workers.demo.training.model import DemoModel
from workers.demo.training.pictures import Pictures
from workers.demo.world import CHANGES

if TYPE_CHECKING:
    from workers.demo.training.train import Training


@torch.no_grad()
def heads(training: "Training", held: Pictures, most: int = 1600) -> dict[str, float]:
    """Return each auxiliary head's share of right answers."""
    totals: dict[str, float] = defaultdict(float)
    starts = range(0, min(most, len(held)), 200)
    for start in starts:
        pixels, kinds, states = held.take(np.arange(start, min(start + 200, len(held))), flip=False)
        patches, merged = training.model.see(pixels)
        _, right = training.heads.loss(patches, training.model.vision_proj(merged), kinds, states)
        for task, share in right.items():
            totals[task] += share
    return {task: round(total / len(starts), 3) for task, total in totals.items()}


def answers(
    model: DemoModel, sp: sentencepiece.SentencePieceProcessor, asked: list[str], images: Tensor | None, most: int
) -> list[str]:
    """Answer all prompts greedily; those of one length together. `images` is `[len(asked), n, hidden]`."""
    ends = {sp.piece_to_id(tokens.CHAT_CLOSE), sp.eos_id()}
    ids = [[sp.bos_id(), *sp.encode(samples.turn(prompt))] for prompt in asked]
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, row in enumerate(ids):
        by_length[len(row)].append(index)
    told = [""] * len(asked)
    for rows in by_length.values():
        image = None if images is None else images[rows]
        prompts = torch.tensor([ids[index] for index in rows])
        for index, answer in zip(rows, model.greedy(prompts, image, ends, most), strict=True):
            told[index] = sp.decode([token for token in answer if token not in ends])
    return told


@torch.no_grad()
def roles(model: DemoModel, held: Pictures, sp: sentencepiece.SentencePieceProcessor, count: int) -> dict[str, float]:
    """Return the share of right answers of each role on `count` held-out samples."""
    rng = random.Random("held-out texts")
    index = np.random.default_rng(0)
    right: dict[str, float] = defaultdict(float)

    pixels, _, states = held.take(index.choice(np.flatnonzero(held.kinds == SINGLE), count, replace=False), flip=False)
    merged = model.see(pixels)[1]
    told = answers(model, sp, [samples.first_frame(rng, unrecord(s[0]))[0] for s in states.numpy()],
                   model.image_tokens(merged, merged[:, None, None]), 30)  # fmt: skip
    for text, state in zip(told, states.numpy(), strict=True):
        true = unrecord(state[0])
        shape, colour = language.read_thing(text)
        right["first"] += (shape, colour) == (true.shape, true.colour if true.shape else None)
        right["first_background"] += language.read_background(text) == true.background

    pixels, kinds, states = held.take(
        index.choice(np.flatnonzero(held.kinds != SINGLE), count, replace=False), flip=False
    )
    merged = model.see(pixels)[1]
    wanted = [(CHANGES[k], unrecord(s[0]), unrecord(s[1])) for k, s in zip(kinds.tolist(), states.numpy(), strict=True)]
    told = answers(model, sp, [samples.differential(rng, *step)[0] for step in wanted],
                   model.image_tokens(merged, merged[:, None, None]), 30)  # fmt: skip
    for text, (kind, before, after) in zip(told, wanted, strict=True):
        right_change = language.read_change(text) == kind
        right_shape = language.read_thing(text)[0] == (before.shape or after.shape)
        right["change"] += right_change
        right["differential"] += right_change and right_shape

    for role, turns, most in (
        ("summary", [samples.summary(rng, rng.randint(3, 7)) for _ in range(count // 2)], 160),
        ("recaption", [samples.recaption(rng) for _ in range(count // 2)], 60),
    ):
        told = answers(model, sp, [prompt for prompt, _ in turns], None, most)
        right[role] = 2 * sum(text == answer for text, (_, answer) in zip(told, turns, strict=True))
    return {f"said_{role}": round(value / count, 3) for role, value in right.items()}
