"""Train the demo model's keyframe encoder: a tiny CLIP vision tower whose CLS feature detects changes.

    python -m workers.demo.training.train_keyframes --checkpoint DIR

Trains on H.264-decoded frames with a logistic loss on their cosine similarity: two frames of one state should lie above
`BORDER`, frames before and after a change below it. Writes `keyframe_encoder/` into the checkpoint, and the threshold
with the fewest errors on held-out clips into its config.json. Takes tens of minutes on one core.
"""

import argparse
import json
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm, trange  # type: ignore[import-untyped]
from transformers import CLIPVisionConfig, CLIPVisionModel

from workers.demo import scenes, world
from workers.demo.training.data import sample_clip
from workers.demo.training.optimisers import Muon
from workers.xcomposer2.image import CLIP_MEAN, CLIP_STD

SIDE_PX, PATCH_PX = 64, 8
BORDER, STEEPNESS = 0.8, 20.0
BATCH = 48
FIRST_SEED = 5_000_000  # of the training clips
CRF = 23  # H.264 quality of the clips that choose the threshold
MUON_LR, ADAM_LR = 0.01, 2e-3
PREPROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"height": SIDE_PX, "width": SIDE_PX},
    "resample": 2,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": list(CLIP_MEAN),
    "image_std": list(CLIP_STD),
}

Triples = npt.NDArray[np.uint8]  # [n, 3, side, side, 3]: a frame, the same state later, the next state


def triples(seeds: range) -> Triples:
    """Draw clips and return `(frame, later frame of the same state, frame of the next state)` of each change."""
    triples_ = []
    for seed in tqdm(seeds, desc="frames", mininterval=5):
        scene = scenes.make_scene(seed)
        drawn = [scenes.draw(s, scene.width, scene.height, seed) for s in scene.states for _ in range(3)]
        decoded = scenes.through_h264(drawn, random.Random(seed).randint(18, 34))
        shown = [resized(Image.fromarray(f)) for f in decoded]
        triples_ += [(shown[3 * i], shown[3 * i + 2], shown[3 * i + 3]) for i in range(len(scene.changes))]
        triples_ += [(shown[3 * i + 4], shown[3 * i + 5], shown[3 * i + 1]) for i in range(len(scene.changes))]
    return np.array(triples_, np.uint8)


def resized(frame: Image.Image) -> npt.NDArray[np.uint8]:
    """Return `[side, side, 3]`, resized as by the preprocessor."""
    return np.asarray(frame.resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR))


def features(model: CLIPVisionModel, pictures: Tensor) -> Tensor:
    """Return the normalised CLS feature `[n, hidden]` of pictures `[n, side, side, 3]` in 0..255."""
    pixels = (pictures / 255 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    state = model(pixel_values=pixels.permute(0, 3, 1, 2)).last_hidden_state[:, 0]
    return torch.nn.functional.normalize(state, dim=-1)


def cosines(model: CLIPVisionModel, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines for triples `[n, 3, side, side, 3]`.

    The first result `[n]` compares the two frames of a state, the second `[2n]` compares each with the next state.
    """
    frame, same, changed = features(model, pictures.flatten(0, 1)).view(len(pictures), 3, -1).unbind(1)
    return (frame * same).sum(-1), (torch.stack([frame, same]) * changed).sum(-1).flatten()


def augmented(batch: npt.NDArray[np.uint8], rng: np.random.Generator) -> Tensor:
    """Flip, transpose and recolour whole triples, and add a little noise to each picture. Changes remain visible."""
    pictures = batch.astype(np.float32)
    for axis in (2, 3):
        flipped = rng.random(len(pictures)) < 0.5
        pictures[flipped] = np.flip(pictures[flipped], axis)
    transposed = rng.random(len(pictures)) < 0.5
    pictures[transposed] = pictures[transposed].swapaxes(2, 3)
    for triple in pictures:
        inverted = rng.random(3) < 0.5
        triple[:] = np.where(inverted, 255 - triple, triple)[..., rng.permutation(3)]
    spread = rng.uniform(0, 3, (len(pictures), 3, 1, 1, 1)).astype(np.float32)
    return torch.from_numpy(pictures + spread * rng.standard_normal(pictures.shape, np.float32))


def new_encoder() -> CLIPVisionModel:
    config = CLIPVisionConfig(
        hidden_size=96, intermediate_size=384, num_hidden_layers=2, num_attention_heads=3, image_size=SIDE_PX,
        patch_size=PATCH_PX, projection_dim=96,
    )  # fmt: skip
    return CLIPVisionModel(config)


def encoder_optimisers(model: CLIPVisionModel) -> list[tuple[torch.optim.Optimizer, float]]:
    """Return each optimiser with its highest learning rate."""
    matrices = [p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2]
    rest = [p for name, p in model.named_parameters() if not (".layers." in name and p.ndim == 2)]
    adam = torch.optim.AdamW(rest, lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.01)
    return [(Muon([{"params": matrices}]), MUON_LR), (adam, ADAM_LR)]


def train(steps: int, clips: int) -> CLIPVisionModel:
    model = new_encoder()
    data, rng = triples(range(FIRST_SEED, FIRST_SEED + clips)), np.random.default_rng(0)
    optimisers = encoder_optimisers(model)
    bar = trange(steps, desc="training", mininterval=5)
    for step in bar:
        for optimiser, rate in optimisers:
            optimiser.zero_grad()
            for group in optimiser.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / 50, (1 - step / steps) / 0.4)
        same, changed = cosines(model, augmented(data[rng.integers(0, len(data), BATCH)], rng))
        loss = F.softplus(STEEPNESS * (BORDER - same)).mean() + F.softplus(STEEPNESS * (changed - BORDER)).mean()
        torch.autograd.backward(loss)
        for optimiser, _ in optimisers:
            optimiser.step()
        figures = {"loss": loss.item(), "same": same.min().item(), "changed": changed.max().item()}
        bar.set_postfix({name: f"{value:.4f}" for name, value in figures.items()})
    model.requires_grad_(False)
    return model


@torch.no_grad()
def threshold(model: CLIPVisionModel, clips: int) -> dict[str, float]:
    """Return the threshold with the fewest errors on held-out clips, sampled as by the service, and its error rates."""
    similarity: dict[bool, list[float]] = {True: [], False: []}  # key: both frames show the same state
    for seed in trange(world.HELD_OUT_SEED, world.HELD_OUT_SEED + clips, desc="clips", mininterval=5):
        frames, held = sample_clip(scenes.make_scene(seed), CRF)
        feature = features(model, torch.from_numpy(np.stack([resized(frame) for frame in frames])).float())
        for index, (a, b) in enumerate(pairwise(held)):
            similarity[a == b].append(float(feature[index] @ feature[index + 1]))
    same, changed = torch.tensor(similarity[True]), torch.tensor(similarity[False])
    candidates = torch.linspace(0.5, 0.999, 500)
    error_rates = torch.stack([(same < c).float().mean() + (changed >= c).float().mean() for c in candidates])
    best = candidates[error_rates == error_rates.min()]
    chosen = round(best[len(best) // 2].item(), 3)
    return {
        "threshold": chosen,
        "missed": (changed >= chosen).float().mean().item(),
        "invented": (same < chosen).float().mean().item(),
        "lowest_same": same.min().item(),
        "highest_changed": changed.max().item(),
        "same": len(same),
        "changed": len(changed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint folder that contains config.json")
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--clips", type=int, default=600, help="number of clips to draw for training")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = train(arguments.steps, arguments.clips)
    chosen = threshold(model, 200)
    folder = arguments.checkpoint / "keyframe_encoder"
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2) + "\n")
    path = arguments.checkpoint / "config.json"
    config = json.loads(path.read_text())
    config["sharecap"]["similarity_threshold"] = chosen["threshold"]
    path.write_text(json.dumps(config, indent=2) + "\n")
    print(json.dumps(chosen))


if __name__ == "__main__":
    main()
