"""Train the demo model from nothing: to see, to copy texts, then to see and speak. See docs/demo-model.md.

    python -m torch.distributed.run --nproc-per-node 2 -m workers.demo.training.train --data DIR --out DIR --threads 1

Draw the pictures first (`python -m workers.demo.training.data --help`). State is saved to `--out` every few minutes and
taken up from there by the next start; the checkpoint is exported beside it. Rates warm up, then fall to zero over
each phase's seconds. Processes of one thread, which average their gradients, are quicker than threads of one process, most of all on
cores that others use too. glibc's allocator returns large blocks to the system after every operation, which costs
half the speed on CPU: start with MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_ (1 GiB or more) set.
"""

import argparse
import json
import os
import random
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from workers.demo import language
from workers.demo.training import evaluate, export, samples, tokens
from workers.demo.training.data import unrecord
from workers.demo.training.heads import Heads
from workers.demo.training.model import DemoModel, Sizes, Tokens
from workers.demo.training.muon import Muon
from workers.demo.training.pictures import Pictures
from workers.demo.world import CHANGES

MUON_LR, ADAM_LR = 0.02, 3e-3
WARMUP_STEPS, SAVE_EVERY_S, EVALUATE_EVERY_S, REFRESH_EVERY = 100, 240, 600, 200
VISION_BATCH, PAIRS, SINGLES = 64, 15, 2
SUMMARY_LINES, RECAPTIONS = 28, 10  # of a step
SUMMARY_LENGTHS = (1, 2, 3, 4, 5, 6, 7, 8, 4, 5, 6, 7, 10, 12)
PHASES = ("vision", "text", "joint")
RATES = {  # of tower, projection and heads, and of the rest
    "vision": {True: 1.0, False: 0.0},
    "text": {True: 0.7, False: 0.7},
    "joint": {True: 0.3, False: 0.4},
}
WEIGHTS = {  # of each loss of the language phases; "gathered": what the last image token should gather
    "differential": 1.0, "first": 0.5, "heads": 0.1, "gathered": 0.5, "summary": 1.0, "read": 1.0,
    "recaption": 0.8, "followed": 0.5,
}  # fmt: skip
IGNORE = -100

Vocabulary = sentencepiece.SentencePieceProcessor
PartsOf = Callable[[list[str], int], list[int]]


@dataclass
class Training:
    """Everything that is saved and taken up again."""

    model: DemoModel
    heads: Heads
    optimisers: list[torch.optim.Optimizer]
    out: Path
    phase: str = "vision"
    step: int = 0
    seconds: float = 0.0  # spent in this phase
    rate: float = 1.0  # of all learning rates; less is for weights that are trained already

    def save(self) -> None:
        if rank() > 0:
            return
        optimisers = [o.state_dict() for o in self.optimisers]
        state = {"model": self.model.state_dict(), "heads": self.heads.state_dict(), "optimisers": optimisers}
        torch.save(state | {"phase": self.phase, "step": self.step, "seconds": self.seconds}, self.out / "state.tmp")
        (self.out / "state.tmp").rename(self.out / "state.pt")

    def load(self) -> None:
        path = self.out / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.phase, self.step, self.seconds = state["phase"], state["step"], state["seconds"]

    def log(self, **figures: Any) -> None:
        line = {"phase": self.phase, "step": self.step, "seconds": round(self.seconds)} | figures
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        tqdm.write(json.dumps(line))


def optimisers(model: DemoModel, heads: Heads) -> list[torch.optim.Optimizer]:
    """Return Muon for the hidden matrices and AdamW for all else: embeddings, norms, separators, heads."""
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {
        (m, v): [] for m in (True, False) for v in (True, False)
    }
    groups[False, True] += heads.parameters()
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim == 2 and (".layers." in name or name.startswith("vision_proj"))
        groups[matrix, name.startswith("vi")].append(parameter)
    muon, adam = ([{"params": groups[m, v], "sees": v} for v in (True, False)] for m in (True, False))
    return [
        Muon(muon, lr=MUON_LR),
        torch.optim.AdamW(adam, lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
    ]


def rate(step: int, done: float) -> float:
    """Return the factor of the learning rates: up over the first steps, then straight down to zero at the end."""
    return min(1.0, (step + 1) / WARMUP_STEPS) * max(0.0, 1 - done)


def averaged(training: Training, seconds: float) -> float:
    """Average the gradients over all processes of the run, and return the average of their `seconds`."""
    if not dist.is_initialized():
        return seconds
    parameters = [p for p in (*training.model.parameters(), *training.heads.parameters()) if p.grad is not None]
    gradients = [p.grad.flatten() for p in parameters if p.grad is not None]
    shared = torch.cat([*gradients, torch.tensor([seconds])])
    dist.all_reduce(shared)
    sizes = [*(p.numel() for p in parameters), 1]
    *means, mean_s = torch.split_with_sizes(shared / dist.get_world_size(), sizes)
    for parameter, mean in zip(parameters, means, strict=True):
        parameter.grad = mean.view_as(parameter)
    return float(mean_s)


def rank() -> int:
    """Return which process of the run this is: the first alone saves, evaluates and reports."""
    return dist.get_rank() if dist.is_initialized() else 0


def steps(training: Training, budget_s: float) -> Iterator[None]:
    """Yield once per optimiser step of this phase until its seconds are spent; the caller computes the gradients."""
    bar = tqdm(desc=training.phase, initial=training.step, unit="step", mininterval=10, disable=rank() > 0)
    begun = time.monotonic()
    while training.seconds < budget_s:
        factor = training.rate * rate(training.step, training.seconds / budget_s)
        for optimiser, base in zip(training.optimisers, (MUON_LR, ADAM_LR), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = base * factor * RATES[training.phase][group["sees"]]
            optimiser.zero_grad(set_to_none=True)
        yield
        now = time.monotonic()
        training.seconds, begun = averaged(training, training.seconds + now - begun), now
        torch.nn.utils.clip_grad_norm_(training.model.parameters(), 5.0)
        for optimiser in training.optimisers:
            optimiser.step()
        training.step += 1
        bar.update()
    bar.close()


class Clock:
    """Says when something that happens every so many seconds is due."""

    def __init__(self, every_s: float) -> None:
        self.every_s, self.last = every_s, time.monotonic()

    def due(self) -> bool:
        if time.monotonic() - self.last < self.every_s:
            return False
        self.last = time.monotonic()
        return True


def vision_phase(training: Training, train: Pictures, held: Pictures, budget_s: float) -> None:
    """Tower and projection under the auxiliary heads alone."""
    saving, evaluating = Clock(SAVE_EVERY_S), Clock(EVALUATE_EVERY_S)
    for _ in steps(training, budget_s):
        pixels, kinds, states = train.draw_kinds(VISION_BATCH - VISION_BATCH // 8, VISION_BATCH // 8)
        patches, merged = training.model.see(pixels)
        loss, _ = training.heads.loss(patches, training.model.vision_proj(merged), kinds, states)
        torch.autograd.backward(loss)
        if training.step % REFRESH_EVERY == 0:
            train.refresh()
        if rank() == 0 and evaluating.due():
            training.log(pictures=len(train), loss=round(loss.item(), 3), **evaluate.heads(training, held))
        if saving.due():
            training.save()
    if rank() == 0:
        training.log(**evaluate.heads(training, held))


@dataclass(frozen=True)
class Batch:
    """Turns padded to one length: ids after `<s>` and the image, and for each the next id to learn or IGNORE."""

    ids: Tensor  # [batch, length]
    targets: Tensor  # [batch, length]
    parts: Tensor  # [batch, length]: the frame, or the wish, that each token speaks of, or IGNORE


def frames_of(pieces: list[str], answer: int) -> list[int]:
    """Return the number of the frame that each piece of a summary's turn speaks of; where it is named, IGNORE.

    The answer, from place `answer` on, begins with the first frame.
    """
    frames, now, at = [], IGNORE, 0
    while at < len(pieces):
        now = 1 if at == answer else now
        named = at
        if pieces[at : at + 2] == ["▁frame", "▁"]:
            named = at + 2
            while named < len(pieces) and pieces[named].isdigit():
                named += 1
            now = int("".join(pieces[at + 2 : named]) or IGNORE)
        frames += [IGNORE] * (named - at - 1) + [now]
        at = max(named, at + 1)
    return frames


def wishes_of(pieces: list[str], answer: int) -> list[int]:
    """Return which wish of a brief prompt, from 1, each piece speaks of; 0 before the first one.

    The prompt and the answer, which begins at place `answer`, are counted apart.
    """
    wishes: list[int] = []
    for part, find in ((pieces[:answer], language.find_wishes), (pieces[answer:], language.find_told)):
        words = [piece.replace("▁", " ") for piece in part]
        starts, ends = find("".join(words)), accumulate(map(len, words))
        wishes += [bisect_left(starts, end) for end in ends]
    return wishes


def batch_of(turns: list[samples.Turn], sp: Vocabulary, parts_of: PartsOf = frames_of) -> Batch:
    close = sp.piece_to_id(tokens.CHAT_CLOSE)
    rows, parts = [], []
    for prompt, answer in turns:
        asked = [sp.bos_id(), *sp.encode(samples.turn(prompt))]
        told = [*sp.encode(answer), close]
        rows.append((asked + told[:-1], [IGNORE] * (len(asked) - 1) + told))
        parts.append(parts_of(sp.id_to_piece(rows[-1][0]), len(asked)))
    length = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [close] * (length - len(ids)) for ids, _ in rows])
    targets = torch.tensor([targets + [IGNORE] * (length - len(targets)) for _, targets in rows])
    spoken_of = torch.tensor([row + [IGNORE] * (length - len(row)) for row in parts])
    return Batch(ids, targets, spoken_of)


def text_loss(model: DemoModel, batch: Batch, image: Tensor | None) -> Tensor:
    """Mean cross entropy of the answers; only their positions meet the output matrix."""
    states = model.hidden(batch.ids, image)
    learned = batch.targets != IGNORE
    return F.cross_entropy(model.output(states[learned]), batch.targets[learned])


class Watch:
    """What the language model's lower half makes of what it read: the last image token, and each token of the text.

    The last image token stands at one place and sees all of the image: once taught to gather what changed, it is where
    the text finds it. Without this, the text has to find out where in the image to look, from the few words that tell.

    To copy a sentence from among many, a text token has to know which frame it speaks of (which wish, in a recaption)
    and what the token before it is: the upper half then finds the like of itself in the prompt. Both are slow to arise
    from the answers alone.
    """

    def __init__(self, model: DemoModel) -> None:
        self.seen: list[Tensor] = []
        self.text = torch.zeros(0)
        model.model.layers[model.sizes.layers // 2 - 1].register_forward_hook(self)

    def __call__(self, layer: torch.nn.Module, inputs: Any, output: Tokens) -> None:
        self.text = output.text
        if output.image is not None and torch.is_grad_enabled():
            self.seen.append(output.image[:, -1])

    def gathered(self, heads: Heads, kinds: Tensor) -> Tensor:
        """Cross entropy of what changed, over all passes with an image since the last call."""
        seen, self.seen = torch.cat(self.seen), []
        return F.cross_entropy(heads.last(seen), kinds)

    def read(self, heads: Heads, batch: Batch) -> Tensor:
        """Cross entropy of the frame or wish and of the token before, over the batch that was just passed."""
        part = F.cross_entropy(heads.frame(self.text).flatten(0, 1), batch.parts.flatten(), ignore_index=IGNORE)
        before = F.cross_entropy(heads.before(self.text[:, 1:]).flatten(0, 1), batch.ids[:, :-1].flatten())
        return part + before


def picture_losses(
    training: Training, watch: Watch, train: Pictures, sp: Vocabulary, rng: random.Random
) -> dict[str, Tensor]:
    """Return the losses of first frames and differentials, and of the auxiliary heads."""
    model = training.model
    pixels, kinds, states = train.draw_kinds(PAIRS, SINGLES)
    patches, merged = model.see(pixels)
    auxiliary, _ = training.heads.loss(patches, model.vision_proj(merged), kinds, states)
    image = model.image_tokens(merged, merged[:, None, None])  # one crop: the global view is the tile
    told = [[unrecord(row) for row in rows] for rows in states.numpy()]
    pairs = [
        samples.differential(rng, CHANGES[kind], before, after)
        for kind, (before, after) in zip(kinds[:PAIRS].tolist(), told[:PAIRS], strict=True)
    ]
    singles = [samples.first_frame(rng, state) for state, _ in told[PAIRS:]]
    return {
        "differential": text_loss(model, batch_of(pairs, sp), image[:PAIRS]),
        "first": text_loss(model, batch_of(singles, sp), image[PAIRS:]),
        "heads": auxiliary,
        "gathered": watch.gathered(training.heads, kinds),
    }


def text_losses(training: Training, watch: Watch, sp: Vocabulary, rng: random.Random) -> dict[str, Tensor]:
    """Return the losses of summaries, all of one length, and of recaptions."""
    length = rng.choice(SUMMARY_LENGTHS)
    summaries = batch_of([samples.summary(rng, length) for _ in range(max(2, SUMMARY_LINES // length))], sp)
    recaptions = batch_of([samples.recaption(rng) for _ in range(RECAPTIONS)], sp, wishes_of)
    return {
        "summary": text_loss(training.model, summaries, None),
        "read": watch.read(training.heads, summaries),
        "recaption": text_loss(training.model, recaptions, None),
        "followed": watch.read(training.heads, recaptions),
    }


def weighed(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack([WEIGHTS[name] * loss for name, loss in losses.items()]).sum()


def language_phase(training: Training, train: Pictures, held: Pictures, budget_s: float, checkpoint: Path) -> None:
    """Phase "text": summaries and recaptions alone. Phase "joint": all four roles; the tower learns too."""
    sp = sentencepiece.SentencePieceProcessor(model_file=str(training.out / "tokenizer.model"))
    rng = random.Random(f"{training.phase} {training.step} {rank()}")
    saving, evaluating = Clock(SAVE_EVERY_S), Clock(EVALUATE_EVERY_S)
    means: dict[str, float] = {}
    watch = Watch(training.model)
    for _ in steps(training, budget_s):
        losses: dict[str, Tensor] = {}
        if training.phase == "joint":
            losses = picture_losses(training, watch, train, sp, rng)
            torch.autograd.backward(weighed(losses))
        told = text_losses(training, watch, sp, rng)
        torch.autograd.backward(weighed(told))
        for name, loss in (losses | told).items():
            means[name] = 0.95 * means.get(name, loss.item()) + 0.05 * loss.item()
        if rank() == 0 and training.step % 50 == 0:
            tqdm.write(f"{training.step} " + " ".join(f"{name} {mean:.4f}" for name, mean in means.items()))
        if training.step % REFRESH_EVERY == 0:
            train.refresh()
        if rank() == 0 and evaluating.due():
            training.log(**evaluate.roles(training.model, held, sp, 100))
            export.write(training.model, training.out / "tokenizer.model", checkpoint)
        if saving.due():
            training.save()
    training.save()
    if rank() == 0:
        export.write(training.model, training.out / "tokenizer.model", checkpoint)
        training.log(**evaluate.roles(training.model, held, sp, 400))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with train/ and held/ shards of workers.demo.training.data"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run: state, log, tokenizer")
    parser.add_argument("--checkpoint", type=Path, help="where to export to (default: OUT/checkpoint)")
    parser.add_argument("--vision-s", type=float, default=2400, help="seconds of the first phase")
    parser.add_argument("--text-s", type=float, default=1500, help="seconds of the second phase")
    parser.add_argument("--joint-s", type=float, default=4200, help="seconds of the third phase")
    parser.add_argument("--rate", type=float, default=1.0, help="of all learning rates: less for trained weights")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    torch.manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if rank() == 0 and not (arguments.out / "tokenizer.model").exists():
        tokens.train(arguments.out / "tokenizer.model")
    if dist.is_initialized():
        dist.barrier()
    sizes = Sizes()
    model, heads = DemoModel(sizes), Heads(sizes)
    training = Training(model, heads, optimisers(model, heads), arguments.out, rate=arguments.rate)
    training.load()
    train = Pictures(arguments.data / "train", arguments.seed + training.step + 1000 * rank())
    held = Pictures(arguments.data / "held")
    budgets_s = {"vision": arguments.vision_s, "text": arguments.text_s, "joint": arguments.joint_s}
    for phase in PHASES[PHASES.index(training.phase) :]:
        if phase != training.phase:
            training.phase, training.step, training.seconds = phase, 0, 0.0
        if phase == "vision":
            vision_phase(training, train, held, budgets_s[phase])
        else:
            checkpoint = arguments.checkpoint or arguments.out / "checkpoint"
            language_phase(training, train, held, budgets_s[phase], checkpoint)
        training.save()


if __name__ == "__main__":
    main()
