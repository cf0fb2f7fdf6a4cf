"""Train the demo model: to see, to copy texts, then to do both. See docs/demo-model.md.

    python -m torch.distributed.run --nproc-per-node 2 -m workers.demo.training.train --data DIR --out DIR --threads 1

Draw the pictures first (`python -m workers.demo.training.data --help`). The run saves its state to `--out` every few
minutes and resumes from it; it also exports the checkpoint. Learning rates warm up, then fall to zero over each phase.

Several processes of one thread, which average their gradients, are faster than several threads of one process. By
default glibc returns large blocks to the system after every operation, which halves the speed on a CPU: set
MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ to at least 1 GiB.
"""

import argparse
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from workers.demo import examples
from workers.demo.training import export, tokens
from workers.demo.training.batches import Vocabulary, answer_loss, make_batch, request_numbers
from workers.demo.training.data import Pictures, decode_state
from workers.demo.training.evaluate import Evaluator, head_accuracy
from workers.demo.training.heads import Heads
from workers.demo.training.loop import PHASES, Clock, TrainingRun, rank
from workers.demo.training.model import DemoModel, Sizes
from workers.demo.training.optimisers import make_optimisers
from workers.demo.world import CHANGES

SAVE_EVERY_S, EVALUATE_EVERY_S, REPORT_EVERY, REFRESH_EVERY = 240, 600, 50, 200
VISION_BATCH = 64
SUMMARY_LENGTHS = (1, 2, 3, 4, 5, 6, 7, 8, 4, 5, 6, 7, 10, 12)
HEAD_RAMP_STEPS = 200  # auxiliary losses reach their full weight after this many steps
ROLES = ("first frame", "differential", "summary", "recaption")
WEIGHTS = {
    "differential": 1.0, "first frame": 0.5, "picture heads": 0.1, "last image token": 0.5, "summary": 1.0,
    "summary references": 1.0, "recaption": 0.8, "recaption references": 0.5,
}  # fmt: skip


@dataclass(frozen=True)
class StepSize:
    """Numbers of examples in one step of a language phase."""

    pairs: int
    singles: int
    summary_lines: int
    recaptions: int


STEP_SIZES = {
    "text": StepSize(pairs=0, singles=0, summary_lines=28, recaptions=10),
    "joint": StepSize(pairs=15, singles=2, summary_lines=28, recaptions=10),
}


def vision_phase(run: TrainingRun[Heads], train: Pictures, held_out: Pictures, budget_s: float) -> None:
    """Train the tower and the projection, by the auxiliary heads alone."""
    saving, evaluating = Clock(SAVE_EVERY_S), Clock(EVALUATE_EVERY_S)
    for _ in run.steps(budget_s):
        pixels, kinds, states = train.draw(VISION_BATCH - VISION_BATCH // 8, VISION_BATCH // 8)
        patches, merged = run.model.see(pixels)
        loss, _ = run.heads.picture.loss(patches, run.model.vision_proj(merged), kinds, states)
        torch.autograd.backward(loss)
        if run.step % REFRESH_EVERY == 0:
            train.refresh()
        if rank() == 0 and evaluating.due():
            run.log(pictures=len(train), loss=round(loss.item(), 3), **head_accuracy(run, held_out))
        if saving.due():
            run.save()
    if rank() == 0:
        run.log(**head_accuracy(run, held_out))


def picture_losses(
    run: TrainingRun[Heads], train: Pictures, vocabulary: Vocabulary, rng: random.Random
) -> dict[str, Tensor]:
    """Return the losses of first frames and differentials, and of their auxiliary heads."""
    model, pairs = run.model, STEP_SIZES[run.phase].pairs
    pixels, kinds, states = train.draw(pairs, STEP_SIZES[run.phase].singles)
    patches, merged = model.see(pixels)
    image = model.image_tokens(merged, merged[:, None, None])  # with one crop the global view is also the tile
    shown = [[decode_state(row) for row in rows] for rows in states.numpy()]
    changes = [
        examples.differential(rng, CHANGES[kind], before, after)
        for kind, (before, after) in zip(kinds[:pairs].tolist(), shown[:pairs], strict=True)
    ]
    firsts = [examples.first_frame(rng, state) for state, _ in shown[pairs:]]
    differential, outputs = answer_loss(model, make_batch(changes, vocabulary), image[:pairs])
    first, _ = answer_loss(model, make_batch(firsts, vocabulary), image[pairs:])
    middle = outputs[model.sizes.layers // 2 - 1]
    assert middle.image is not None
    pictures, _ = run.heads.picture.loss(patches, model.vision_proj(merged), kinds, states)
    return {
        "differential": differential,
        "first frame": first,
        "picture heads": pictures,
        "last image token": run.heads.text.change_loss(middle.image, kinds[:pairs]),
    }


def text_losses(run: TrainingRun[Heads], vocabulary: Vocabulary, rng: random.Random) -> dict[str, Tensor]:
    """Return the losses of summaries, all of one length, and of recaptions."""
    length, middle = rng.choice(SUMMARY_LENGTHS), run.model.sizes.layers // 2 - 1
    size = STEP_SIZES[run.phase]
    count = max(2, size.summary_lines // length)
    summaries = make_batch([examples.summary(rng, length) for _ in range(count)], vocabulary)
    requests = [examples.recaption(rng) for _ in range(size.recaptions)]
    recaptions = make_batch(requests, vocabulary, request_numbers)
    summary, summary_outputs = answer_loss(run.model, summaries, None)
    recaption, recaption_outputs = answer_loss(run.model, recaptions, None)
    return {
        "summary": summary,
        "summary references": run.heads.text.reference_loss(summary_outputs[middle].text, summaries),
        "recaption": recaption,
        "recaption references": run.heads.text.reference_loss(recaption_outputs[middle].text, recaptions),
    }


def backward(run: TrainingRun[Heads], losses: dict[str, Tensor]) -> None:
    """Add the gradients of the weighted losses. New heads start with little weight, so they do not spoil the model."""
    ramp = min(1.0, (run.step + 1) / HEAD_RAMP_STEPS)
    weighted = [WEIGHTS[name] * (1.0 if name in ROLES else ramp) * loss for name, loss in losses.items()]
    torch.autograd.backward(torch.stack(weighted).sum())


def training_losses(
    run: TrainingRun[Heads], train: Pictures, vocabulary: Vocabulary, rng: random.Random
) -> Iterator[dict[str, float]]:
    """Compute the gradients of one step, part by part. Yields the losses of each part."""
    if run.phase == "joint":
        losses = picture_losses(run, train, vocabulary, rng)
        backward(run, losses)
        yield {name: loss.item() for name, loss in losses.items()}
    losses = text_losses(run, vocabulary, rng)
    backward(run, losses)
    yield {name: loss.item() for name, loss in losses.items()}


def language_phase(
    run: TrainingRun[Heads], train: Pictures, held_out: Pictures, budget_s: float, checkpoint: Path
) -> None:
    """Train summaries and recaptions ("text"), and first frames and differentials too ("joint")."""
    vocabulary = sentencepiece.SentencePieceProcessor(model_file=str(run.out / "tokenizer.model"))
    rng = random.Random(f"{run.phase} {run.step} {rank()}")
    saving, evaluating = Clock(SAVE_EVERY_S), Clock(EVALUATE_EVERY_S)
    evaluator = Evaluator(run.model, vocabulary, held_out)
    means: dict[str, float] = {}
    for _ in run.steps(budget_s):
        for part in training_losses(run, train, vocabulary, rng):
            means |= {name: 0.95 * means.get(name, value) + 0.05 * value for name, value in part.items()}
        if rank() == 0 and run.step % REPORT_EVERY == 0:
            tqdm.write(f"{run.step} " + " ".join(f"{name}: {mean:.4f}" for name, mean in means.items()))
        if run.step % REFRESH_EVERY == 0:
            train.refresh()
        if rank() == 0 and evaluating.due():
            run.log(**evaluator.accuracy(100))
            export.write(run.model, run.out / "tokenizer.model", checkpoint)
        if saving.due():
            run.save()
    run.save()
    if rank() == 0:
        export.write(run.model, run.out / "tokenizer.model", checkpoint)
        run.log(**evaluator.accuracy(400))


def arguments_of_command() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with train/ and held/ shards of workers.demo.training.data"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run: state, log, tokenizer")
    parser.add_argument("--checkpoint", type=Path, help="folder of the exported checkpoint (default: OUT/checkpoint)")
    parser.add_argument("--start-from", type=Path, help="checkpoint whose weights and tokenizer the run starts from")
    parser.add_argument("--first-phase", choices=PHASES, default=PHASES[0], help="phase of a new run")
    for phase, seconds in zip(PHASES, (2400, 1500, 4200), strict=True):
        parser.add_argument(f"--{phase}-s", type=float, default=seconds, help=f"CPU seconds of the phase {phase!r}")
    parser.add_argument(
        "--rate", type=float, default=1.0, help="factor of all learning rates; lower for trained weights"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads per process")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def prepare_tokenizer(out: Path, start_from: Path | None) -> None:
    """Copy or train the run's tokenizer in process 0, and let the others wait for it."""
    path = out / "tokenizer.model"
    if rank() == 0 and not path.exists():
        if start_from:
            path.write_bytes((start_from / "tokenizer.model").read_bytes())
        else:
            tokens.train(path)
    if dist.is_initialized():
        dist.barrier()


def main() -> None:
    arguments = arguments_of_command()
    torch.set_num_threads(arguments.threads)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    torch.manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    prepare_tokenizer(arguments.out, arguments.start_from)
    model = export.read(arguments.start_from).train() if arguments.start_from else DemoModel(Sizes())
    heads = Heads(model.sizes)
    run = TrainingRun(
        model, heads, make_optimisers(model, heads), arguments.out, arguments.first_phase, rate=arguments.rate
    )
    run.load()
    train = Pictures(arguments.data / "train", arguments.seed + run.step + 1000 * rank())
    held_out = Pictures(arguments.data / "held")
    for phase in PHASES[PHASES.index(run.phase) :]:
        run.enter(phase)
        budget_s = getattr(arguments, f"{phase}_s")
        if phase == "vision":
            vision_phase(run, train, held_out, budget_s)
        else:
            checkpoint = arguments.checkpoint or arguments.out / "checkpoint"
            language_phase(run, train, held_out, budget_s, checkpoint)
        run.save()


if __name__ == "__main__":
    main()
