"""Train the demo model from nothing on drawn scenes: first to see, then to see and speak. See docs/demo-model.md.

    python -m workers.demo.train --data DIR --out DIR --vision-s 2400 --joint-s 4200

Draw the pictures first (`python -m workers.demo.data --help`). State is saved to `--out` every few minutes and taken up
from there by the next start; the checkpoint is exported beside it. Rates warm up, stay, and fall to zero in the last
quarter of each phase's seconds. glibc's allocator returns large blocks to the system after every operation, which costs
half the speed on CPU: start with MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_ (1 GiB or more) set.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from workers.demo import evaluate, export, samples, tokens
from workers.demo.data import unrecord
from workers.demo.model import DemoModel, Sizes, Tokens
from workers.demo.muon import Muon
from workers.demo.pictures import Pictures
from workers.demo.scenes import CHANGES
from workers.demo.vision_heads import VisionHeads

MUON_LR, ADAM_LR = 0.02, 3e-3
WARMUP_STEPS, SAVE_EVERY_S, EVALUATE_EVERY_S, REFRESH_EVERY = 100, 240, 420, 200
VISION_BATCH, PAIRS, SINGLES, SUMMARY_STEPS, RECAPTIONS = 64, 24, 4, 32, 6
DECAY = 0.25  # share of a phase in which the rates fall
JOINT_RATE = {True: 0.15, False: 0.4}  # of tower, projection and heads, and of the rest, relative to the vision phase
FROZEN = 1.0  # share of the joint phase in which the tower stays as it is: what is left to learn then is language
AUXILIARY = 0.1  # weight of the vision heads in the joint phase
GATHER = 0.5  # weight of what the last image token should gather
IGNORE = -100

Vocabulary = sentencepiece.SentencePieceProcessor


@dataclass
class Training:
    """Everything that is saved and taken up again."""

    model: DemoModel
    heads: VisionHeads
    optimisers: list[torch.optim.Optimizer]
    out: Path
    phase: str = "vision"
    step: int = 0
    seconds: float = 0.0  # spent in this phase

    def save(self) -> None:
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


def optimisers(model: DemoModel, heads: VisionHeads) -> list[torch.optim.Optimizer]:
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


def rate(step: int, done: float, floor: float) -> float:
    """Return the factor of the learning rates: up over the first steps, level, down over the last quarter."""
    return min(1.0, (step + 1) / WARMUP_STEPS) * max(floor, min(1.0, (1 - done) / DECAY))


def steps(training: Training, budget_s: float, floor: float) -> Iterator[None]:
    """Yield once per optimiser step of this phase until its seconds are spent; the caller computes the gradients."""
    bar = tqdm(desc=training.phase, initial=training.step, unit="step", mininterval=10)
    while training.seconds < budget_s:
        begun = time.monotonic()
        factor = rate(training.step, training.seconds / budget_s, floor)
        for optimiser, base in zip(training.optimisers, (MUON_LR, ADAM_LR), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = base * factor * (JOINT_RATE[group["sees"]] if training.phase == "joint" else 1.0)
            optimiser.zero_grad(set_to_none=True)
        yield
        torch.nn.utils.clip_grad_norm_(training.model.parameters(), 5.0)
        for optimiser in training.optimisers:
            optimiser.step()
        training.step += 1
        training.seconds += time.monotonic() - begun
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
    for _ in steps(training, budget_s, floor=0.1):
        pixels, kinds, states = train.draw(VISION_BATCH)
        patches, merged = training.model.see(pixels)
        loss, _ = training.heads.loss(patches, training.model.vision_proj(merged), kinds, states)
        torch.autograd.backward(loss)
        if training.step % REFRESH_EVERY == 0:
            train.refresh()
        if evaluating.due():
            training.log(pictures=len(train), loss=round(loss.item(), 3), **evaluate.heads(training, held))
        if saving.due():
            training.save()
    training.log(**evaluate.heads(training, held))


@dataclass(frozen=True)
class Batch:
    """Turns padded to one length: ids after `<s>` and the image, and for each the next id to learn or IGNORE."""

    ids: Tensor  # [batch, length]
    targets: Tensor  # [batch, length]


def batch_of(turns: list[samples.Turn], sp: Vocabulary) -> Batch:
    close = sp.piece_to_id(tokens.CHAT_CLOSE)
    rows = []
    for prompt, answer in turns:
        asked = [sp.bos_id(), *sp.encode(samples.turn(prompt))]
        told = [*sp.encode(answer), close]
        rows.append((asked + told[:-1], [IGNORE] * (len(asked) - 1) + told))
    length = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [close] * (length - len(ids)) for ids, _ in rows])
    targets = torch.tensor([targets + [IGNORE] * (length - len(targets)) for _, targets in rows])
    return Batch(ids, targets)


def text_loss(model: DemoModel, batch: Batch, image: Tensor | None) -> Tensor:
    """Mean cross entropy of the answers; only their positions meet the output matrix."""
    states = model.hidden(batch.ids, image)
    learned = batch.targets != IGNORE
    return F.cross_entropy(model.output(states[learned]), batch.targets[learned])


class Watch:
    """What the language model's lower half makes of the last image token, for each forward pass with an image.

    That token stands at one place and sees all of the image: once taught to gather what changed, it is where the text
    finds it. Without this, the text has to find out where in the image to look, from the few words that tell.
    """

    def __init__(self, model: DemoModel) -> None:
        self.seen: list[Tensor] = []
        model.model.layers[model.sizes.layers // 2 - 1].register_forward_hook(self)

    def __call__(self, layer: torch.nn.Module, inputs: Any, output: Tokens) -> None:
        if output.image is not None and torch.is_grad_enabled():
            self.seen.append(output.image[:, -1])

    def loss(self, heads: VisionHeads, kinds: Tensor) -> Tensor:
        """Cross entropy of what changed, over all passes since the last call."""
        seen, self.seen = torch.cat(self.seen), []
        return F.cross_entropy(heads.last(seen), kinds)


def joint_step(  # noqa: PLR0917
    training: Training, watch: Watch, train: Pictures, sp: Vocabulary, rng: random.Random, seeing: bool
) -> dict[str, float]:
    """Gradients of one step over all four roles, and where `seeing` of the tower too; return each loss."""
    model = training.model
    pixels, kinds, states = train.draw_kinds(pairs=PAIRS, singles=SINGLES)
    with torch.set_grad_enabled(seeing):
        patches, merged = model.see(pixels)
    auxiliary, _ = training.heads.loss(patches, model.vision_proj(merged), kinds, states)
    image = model.image_tokens(merged, merged[:, None, None])  # one crop: the global view is the tile
    told = [[unrecord(row) for row in rows] for rows in states.numpy()]
    pairs = [
        samples.differential(rng, CHANGES[kind], before, after)
        for kind, (before, after) in zip(kinds[:PAIRS].tolist(), told[:PAIRS], strict=True)
    ]
    singles = [samples.first_frame(rng, state) for state, _ in told[PAIRS:]]
    differential = text_loss(model, batch_of(pairs, sp), image[:PAIRS])
    first = text_loss(model, batch_of(singles, sp), image[PAIRS:])
    gathered = watch.loss(training.heads, kinds)
    torch.autograd.backward(differential + 0.5 * first + AUXILIARY * auxiliary + GATHER * gathered)
    longest = rng.choice((1, 2, 2, 3, 4, 6) if rng.random() < 0.8 else (8, 12))
    count = max(2, SUMMARY_STEPS // longest)
    summary = text_loss(model, batch_of([samples.summary(rng, longest) for _ in range(count)], sp), None)
    recaption = text_loss(model, batch_of([samples.recaption(rng) for _ in range(RECAPTIONS)], sp), None)
    torch.autograd.backward(summary + 0.5 * recaption)
    losses = {
        "differential": differential,
        "first": first,
        "summary": summary,
        "recaption": recaption,
        "heads": auxiliary,
        "gathered": gathered,
    }
    return {name: loss.item() for name, loss in losses.items()}


def joint_phase(training: Training, train: Pictures, held: Pictures, budget_s: float, checkpoint: Path) -> None:
    """All of the model on all four roles."""
    sp = sentencepiece.SentencePieceProcessor(model_file=str(training.out / "tokenizer.model"))
    rng = random.Random(f"texts {training.step}")
    saving, evaluating = Clock(SAVE_EVERY_S), Clock(EVALUATE_EVERY_S)
    means: dict[str, float] = {}
    watch = Watch(training.model)
    for _ in steps(training, budget_s, floor=0.0):
        seeing = training.seconds > FROZEN * budget_s
        for name, loss in joint_step(training, watch, train, sp, rng, seeing).items():
            means[name] = 0.95 * means.get(name, loss) + 0.05 * loss
        if training.step % 50 == 0:
            tqdm.write(f"{training.step} " + " ".join(f"{name} {mean:.3f}" for name, mean in means.items()))
        if training.step % REFRESH_EVERY == 0:
            train.refresh()
        if evaluating.due():
            training.log(**evaluate.roles(training.model, held, sp, 100), **evaluate.heads(training, held))
            export.write(training.model, training.out / "tokenizer.model", checkpoint)
        if saving.due():
            training.save()
    training.save()
    export.write(training.model, training.out / "tokenizer.model", checkpoint)
    training.log(**evaluate.roles(training.model, held, sp, 400), **evaluate.heads(training, held))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with train/ and held/ shards of workers.demo.data"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run: state, log, tokenizer")
    parser.add_argument("--checkpoint", type=Path, help="where to export to (default: OUT/checkpoint)")
    parser.add_argument("--vision-s", type=float, default=2400, help="seconds of the first phase")
    parser.add_argument("--joint-s", type=float, default=4200, help="seconds of the second phase")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not (arguments.out / "tokenizer.model").exists():
        tokens.train(arguments.out / "tokenizer.model")
    sizes = Sizes()
    model, heads = DemoModel(sizes), VisionHeads(sizes)
    training = Training(model, heads, optimisers(model, heads), arguments.out)
    training.load()
    train = Pictures(arguments.data / "train", arguments.seed + training.step)
    held = Pictures(arguments.data / "held")
    if training.phase == "vision":
        vision_phase(training, train, held, arguments.vision_s)
        training.phase, training.step, training.seconds = "joint", 0, 0.0
        training.save()
    joint_phase(training, train, held, arguments.joint_s, arguments.checkpoint or arguments.out / "checkpoint")


if __name__ == "__main__":
    main()
