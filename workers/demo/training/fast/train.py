"""Train the fast role: new layers in a finished model, whose other answers stay the same. See docs/demo-model.md.

    python -m workers.demo.training.fast.train --start-from CHECKPOINT --data DIR --pictures DIR --out DIR

`--data` holds train/ and held/ shards of `workers.demo.training.fast.cells`, `--pictures` the training pictures of the
other roles. The run saves its state to `--out` every few minutes, resumes from it, and exports a checkpoint. Phases:

- frames: the first two new layers find out, at the end of each crop, what the frame shows and what has changed;
- captions: the others learn to write captions from that. Answers of the other image roles are distilled from the old
  model. Answers without an image cannot change (see `layers.py`).
"""

import argparse
import os
import random
from dataclasses import dataclass, field
from pathlib import Path

import sentencepiece
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from workers.demo.training import export
from workers.demo.training.batches import IGNORE, Vocabulary
from workers.demo.training.data import Pictures
from workers.demo.training.evaluate import Evaluator
from workers.demo.training.fast import cells, reading
from workers.demo.training.fast.cells import Cells
from workers.demo.training.fast.heads import ColumnHeads
from workers.demo.training.fast.layers import COMPARING, READING, extended, make_optimisers, new_layers, train_only
from workers.demo.training.fast.reading import ColumnTurns, PictureTurns, single
from workers.demo.training.loop import Clock, TrainingRun, rank
from workers.demo.training.model import DemoModel, Tokens

PHASES = ("frames", "captions")
SAVE_EVERY_S, EVALUATE_EVERY_S, REPORT_EVERY, REFRESH_EVERY = 40, 240, 50, 100
MIN_KEYFRAMES, MAX_KEYFRAMES, FULL_LENGTH_AT = 2, 9, 0.25  # columns have all lengths from this share of "frames" on
FRAMES_PER_STEP = {"frames": 200, "captions": 150}
SINGLES, PAIRS = 6, 6  # pictures of each step of "frames" whose tokens must not change
IDENTITY_WEIGHT, TEXT_WEIGHT, ANSWERS_WEIGHT, STATES_WEIGHT = 3.0, 0.5, 2.0, 0.3
POOL, NEW_SHARE = 50, 0.2  # batches of inputs that are kept, and how often a new one is added
ANSWER_TOKENS = 200


@dataclass(frozen=True)
class Sources:
    """Everything that the batches of a phase are made from."""

    frames: Cells
    pictures: Pictures
    vocabulary: Vocabulary
    teacher: DemoModel
    rng: random.Random


def keyframes_at(done: float) -> int:
    """Return the maximum number of keyframes in the phase "frames": it rises from 4 to `MAX_KEYFRAMES`."""
    return min(MAX_KEYFRAMES, 4 + int((MAX_KEYFRAMES - 3) * done / FULL_LENGTH_AT))


def comparing_outputs(model: DemoModel, image: Tensor) -> list[Tokens]:
    """Return the outputs of the comparing layers for an image alone."""
    start = torch.ones(len(image), 1, dtype=torch.long)  # <s>
    return model.outputs_between(Tokens(model.model.tok_embeddings(start), image), 0, COMPARING)


def frames_losses(run: TrainingRun[ColumnHeads], sources: Sources, max_keyframes: int) -> dict[str, float]:
    rng = sources.rng
    count = rng.randint(max(MIN_KEYFRAMES, max_keyframes - 6), max_keyframes)
    batch = FRAMES_PER_STEP["frames"] // (count + 1)
    columns = cells.make_batch([sources.frames.column(rng, count) for _ in range(batch)], run.model)
    loss, accuracy = run.heads.loss(comparing_outputs(run.model, columns.image), columns)
    torch.autograd.backward(loss)
    return {"heads": loss.item(), "change": accuracy}


def identity_losses(run: TrainingRun[ColumnHeads], pictures: Pictures) -> dict[str, float]:
    """Keep the tokens of single frames and pairs as they are."""
    pixels = pictures.draw(PAIRS, SINGLES).pixels
    with torch.no_grad():
        merged = run.model.see(pixels)[1]
        image = run.model.image_tokens(merged, merged[:, None, None])
    before, added = image, torch.zeros(())
    for output in comparing_outputs(run.model, image):
        assert output.image is not None
        share = ((output.image - before) ** 2).mean(-1) / ((before**2).mean(-1) + 1.0)
        before = output.image
        added = added + (1 + share).log().mean()
    torch.autograd.backward(IDENTITY_WEIGHT * added)
    return {"added": added.item()}


def caption_losses(run: TrainingRun[ColumnHeads], group: ColumnTurns) -> dict[str, float]:
    outputs = run.model.outputs_between(single(group.below), READING, run.model.sizes.layers)
    answered = group.turns.targets != IGNORE
    logits = run.model.output(run.model.model.norm(outputs[-1].text[answered])).float()
    answer = F.cross_entropy(logits, group.turns.targets[answered])
    text, accuracy = run.heads.text_loss(outputs[0].text, group.turns, group.columns)
    torch.autograd.backward(answer + TEXT_WEIGHT * text)
    return {"answer": answer.item(), "text": text.item(), "change": accuracy}


def added_share(before: Tensor, after: Tensor) -> Tensor:
    """Return how much a layer changes its input: the squared difference relative to the squared input."""
    return ((after - before) ** 2).sum() / (before**2).sum().detach()


def distillation_losses(run: TrainingRun[ColumnHeads], group: PictureTurns) -> dict[str, float]:
    """Keep the answers about single frames and pairs."""
    below = single(group.below)
    outputs = run.model.outputs_between(below, READING, run.model.sizes.layers)
    stated = run.model.output(run.model.model.norm(outputs[-1].text[group.answered])).float()
    expected = group.expected.float()
    divergence = F.kl_div(stated.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="batchmean")
    added = added_share(below.text, outputs[0].text) + added_share(outputs[-2].text, outputs[-1].text)
    torch.autograd.backward(ANSWERS_WEIGHT * divergence + STATES_WEIGHT * (1 + added).log())
    same = (stated.argmax(-1) == expected.argmax(-1)).float().mean().item()
    return {"divergence": divergence.item(), "added": added.item(), "same": same}


@dataclass
class CaptionSteps:
    """The steps of the phase "captions", with the inputs that are kept for later steps."""

    run: TrainingRun[ColumnHeads]
    sources: Sources
    columns: list[ColumnTurns] = field(default_factory=list)
    pictures: list[PictureTurns] = field(default_factory=list)

    def step(self) -> dict[str, float]:
        self.add_inputs()
        losses = caption_losses(self.run, self.sources.rng.choice(self.columns))
        if self.run.step % 2 == 0:
            losses |= distillation_losses(self.run, self.sources.rng.choice(self.pictures))
        return losses

    def add_inputs(self) -> None:
        model, sources, rng = self.run.model, self.sources, self.sources.rng
        if len(self.columns) < POOL or rng.random() < NEW_SHARE:
            count = rng.randint(MIN_KEYFRAMES, MAX_KEYFRAMES)
            batch = FRAMES_PER_STEP["captions"] // (count + 1)
            drawn = [sources.frames.column(rng, count) for _ in range(batch)]
            self.columns.append(reading.column_turns(model, drawn, sources.vocabulary))
        if len(self.pictures) < POOL or rng.random() < NEW_SHARE:
            drawn_pictures = sources.pictures.draw(reading.PAIRS, reading.SINGLES)
            self.pictures.append(reading.picture_turns(model, sources.teacher, drawn_pictures, sources.vocabulary, rng))


@torch.no_grad()
def change_accuracy(run: TrainingRun[ColumnHeads], held: Cells) -> float:
    """Return the share of held-out changes that the auxiliary head names."""
    rng, shares = random.Random("held-out changes"), []
    for count in (4, 5, 6, 7, 8):
        columns = cells.make_batch([held.column(rng, count) for _ in range(40)], run.model)
        outputs = comparing_outputs(run.model, columns.image)
        shares.append(run.heads.loss(outputs, columns)[1])
    return round(sum(shares) / len(shares), 4)


@torch.no_grad()
def fast_accuracy(evaluator: Evaluator, held: Cells, per_length: int) -> dict[str, float]:
    """Return the share of held-out columns of 4 to 8 keyframes with a right caption, and of right sentences."""
    whole, right, total = 0, 0, 0
    for count in range(4, 9):
        rng = random.Random(f"held-out columns {count}")
        batch = cells.make_batch([held.column(rng, count) for _ in range(per_length)], evaluator.model)
        texts = evaluator.answer([example.prompt for example in batch.examples], batch.image, ANSWER_TOKENS)
        for text, example in zip(texts, batch.examples, strict=True):
            expected, stated = example.answer.split(". "), text.split(". ")
            whole += text == example.answer
            total += len(expected)
            right += sum(a == b for a, b in zip(stated, expected, strict=False))
        tqdm.write(f"{texts[0]}\n  expected {batch.examples[0].answer}")
    return {"fast": round(whole / (5 * per_length), 3), "fast_sentences": round(right / total, 4)}


def report(run: TrainingRun[ColumnHeads], evaluator: Evaluator, held: Cells, per_length: int) -> None:
    if rank() == 0:
        run.log(change=change_accuracy(run, held))
    if rank() == 0 and run.phase == "captions":
        run.log(**fast_accuracy(evaluator, held, per_length))


def train_phase(
    run: TrainingRun[ColumnHeads], arguments: argparse.Namespace, budget_s: float, teacher: DemoModel
) -> None:
    vocabulary = sentencepiece.SentencePieceProcessor(model_file=str(arguments.start_from / "tokenizer.model"))
    pictures = Pictures(arguments.pictures, run.step + 1000 * rank())
    rng = random.Random(f"{run.phase} {run.step} {rank()} {arguments.seed}")
    sources = Sources(Cells(arguments.data / "train"), pictures, vocabulary, teacher, rng)
    held, evaluator = Cells(arguments.data / "held"), Evaluator(run.model, vocabulary, pictures)
    saving, evaluating = Clock(SAVE_EVERY_S), Clock(EVALUATE_EVERY_S)
    layers, captions = new_layers(run.model), CaptionSteps(run, sources)
    train_only(run.model, layers[:COMPARING] if run.phase == "frames" else layers[COMPARING:])
    means: dict[str, float] = {}
    for _ in run.steps(budget_s):
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.bfloat16):
            if run.phase == "frames":
                part = frames_losses(run, sources, keyframes_at(run.seconds / budget_s))
                part |= identity_losses(run, pictures)
            else:
                part = captions.step()
        means |= {name: 0.95 * means.get(name, value) + 0.05 * value for name, value in part.items()}
        if rank() == 0 and run.step % REPORT_EVERY == 0:
            figures = " ".join(f"{name}: {mean:.4f}" for name, mean in means.items())
            tqdm.write(f"{run.step} {run.seconds:.0f} s {figures}")
        if run.step % REFRESH_EVERY == 0:
            sources.frames.refresh()
        if evaluating.due():
            report(run, evaluator, held, 8)
        if saving.due():
            run.save()
    run.save()
    report(run, evaluator, held, 40)


def arguments_of_command() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start-from", type=Path, required=True, help="checkpoint without the new layers")
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and held/ shards of columns")
    parser.add_argument("--pictures", type=Path, required=True, help="folder with shards of training pictures")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run: state, log, checkpoint")
    parser.add_argument("--frames-s", type=float, default=300, help="CPU seconds of the phase 'frames'")
    parser.add_argument("--captions-s", type=float, default=2400, help="CPU seconds of the phase 'captions'")
    parser.add_argument("--rate", type=float, default=0.6, help="factor of all learning rates")
    parser.add_argument("--bfloat16", action="store_true", help="compute in bfloat16, fast on CPUs with AMX")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads per process")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    arguments = arguments_of_command()
    torch.set_num_threads(arguments.threads)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    torch.manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    teacher = export.read(arguments.start_from)
    model = extended(teacher)
    train_only(model, new_layers(model))
    heads = ColumnHeads(model.sizes)
    run = TrainingRun(
        model, heads, make_optimisers(new_layers(model), heads), arguments.out, PHASES[0], rate=arguments.rate
    )
    run.load()
    for phase in PHASES[PHASES.index(run.phase) :]:
        run.enter(phase)
        train_phase(run, arguments, getattr(arguments, f"{phase}_s"), teacher)
    if rank() == 0:
        export.write(model, arguments.start_from / "tokenizer.model", arguments.out / "checkpoint")


if __name__ == "__main__":
    main()
