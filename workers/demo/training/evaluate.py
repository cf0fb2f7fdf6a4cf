"""Accuracy of the model in training on held-out pictures and texts, by its own plain forward pass.

Greedy answers are read back with `language.py`. bench/demo_quality.py measures the same through the whole service.
"""

import random
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from workers.demo import examples, language
from workers.demo.examples import Example
from workers.demo.training import tokens
from workers.demo.training.batches import Vocabulary
from workers.demo.training.data import SINGLE, Pictures, decode_state
from workers.demo.training.heads import Heads
from workers.demo.training.loop import TrainingRun
from workers.demo.training.model import DemoModel
from workers.demo.world import CHANGES

IMAGE_ANSWER_TOKENS, SUMMARY_TOKENS, RECAPTION_TOKENS = 30, 160, 60


@torch.no_grad()
def head_accuracy(run: TrainingRun[Heads], held_out: Pictures, count: int = 1600) -> dict[str, float]:
    """Return the accuracy of each auxiliary picture head."""
    totals: dict[str, float] = defaultdict(float)
    starts = range(0, min(count, len(held_out)), 200)
    for start in starts:
        index = np.arange(start, min(start + 200, len(held_out)))
        pixels, kinds, states = held_out.take(index, flip=False)
        patches, merged = run.model.see(pixels)
        _, accuracy = run.heads.picture.loss(patches, run.model.vision_proj(merged), kinds, states)
        for task, share in accuracy.items():
            totals[task] += share
    return {task: round(total / len(starts), 3) for task, total in totals.items()}


@dataclass(frozen=True)
class Evaluator:
    """Lets a model answer held-out turns of each role greedily, and counts right answers."""

    model: DemoModel
    vocabulary: Vocabulary
    held_out: Pictures

    @torch.no_grad()
    def accuracy(self, count: int) -> dict[str, float]:
        """Return the share of right answers of each role on `count` turns, half as many for summary and recaption."""
        shares = self.first_frames(count) | self.differentials(count) | self.texts(count // 2)
        return {f"right_{name}": round(share, 3) for name, share in shares.items()}

    def answer(self, prompts: list[str], images: Tensor | None, max_tokens: int) -> list[str]:
        """Answer all prompts in batches of equal length. `images` is `[len(prompts), n, hidden]`."""
        ends = {self.vocabulary.piece_to_id(tokens.CHAT_CLOSE), self.vocabulary.eos_id()}
        ids = [[self.vocabulary.bos_id(), *self.vocabulary.encode(examples.chat_turn(prompt))] for prompt in prompts]
        by_length: dict[int, list[int]] = defaultdict(list)
        for index, row in enumerate(ids):
            by_length[len(row)].append(index)
        texts = [""] * len(prompts)
        for rows in by_length.values():
            image = None if images is None else images[rows]
            batch = torch.tensor([ids[index] for index in rows])
            for index, answer in zip(rows, self.model.greedy(batch, image, ends, max_tokens), strict=True):
                texts[index] = self.vocabulary.decode([token for token in answer if token not in ends])
        return texts

    def answer_pictures(self, prompts: list[str], pixels: Tensor) -> list[str]:
        merged = self.model.see(pixels)[1]
        return self.answer(prompts, self.model.image_tokens(merged, merged[:, None, None]), IMAGE_ANSWER_TOKENS)

    def picture_index(self, single: bool, count: int) -> npt.NDArray[np.int64]:
        """Return the indices of at most `count` held-out single frames, or of pairs; the same at every call."""
        candidates = np.flatnonzero((self.held_out.kinds == SINGLE) == single)
        return np.random.default_rng(0).permutation(candidates)[:count]

    def first_frames(self, count: int) -> dict[str, float]:
        pixels, _, states = self.held_out.take(self.picture_index(True, count), flip=False)
        shown = [decode_state(rows[0]) for rows in states.numpy()]
        prompts = [examples.first_frame(random.Random(0), state).prompt for state in shown]
        right: Counter[str] = Counter()
        for text, state in zip(self.answer_pictures(prompts, pixels), shown, strict=True):
            right["first"] += language.read_thing(text) == (state.shape, state.colour if state.shape else None)
            right["first_background"] += language.read_background(text) == state.background
        return {name: number / len(shown) for name, number in right.items()}

    def differentials(self, count: int) -> dict[str, float]:
        pixels, kinds, states = self.held_out.take(self.picture_index(False, count), flip=False)
        shown = [(decode_state(before), decode_state(after)) for before, after in states.numpy()]
        steps = [(CHANGES[kind], *pair) for kind, pair in zip(kinds.tolist(), shown, strict=True)]
        rng = random.Random("held-out differentials")
        prompts = [examples.differential(rng, *step).prompt for step in steps]
        right: Counter[str] = Counter()
        for text, (kind, before, after) in zip(self.answer_pictures(prompts, pixels), steps, strict=True):
            right_change = language.read_change(text) == kind
            right["change"] += right_change
            right["differential"] += right_change and language.read_thing(text)[0] == (before.shape or after.shape)
        return {name: number / len(shown) for name, number in right.items()}

    def texts(self, count: int) -> dict[str, float]:
        """Return the share of summaries and of recaptions that are right in every word."""
        rng = random.Random("held-out texts")
        summaries = [examples.summary(rng, rng.randint(3, 7)) for _ in range(count)]
        recaptions = [examples.recaption(rng) for _ in range(count)]
        return {
            "summary": self.exact(summaries, SUMMARY_TOKENS),
            "recaption": self.exact(recaptions, RECAPTION_TOKENS),
        }

    def exact(self, turns: list[Example], max_tokens: int) -> float:
        texts = self.answer([turn.prompt for turn in turns], None, max_tokens)
        return sum(text == turn.answer for text, turn in zip(texts, turns, strict=True)) / len(turns)
