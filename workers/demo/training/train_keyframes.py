"""Train the demo model's keyframe encoder: a tiny CLIP vision tower whose CLS feature tells changes from stillness.

    python -m workers.demo.training.train_keyframes --checkpoint DIR

Learns from frames that went through H.264 by the logistic loss of their cosine: two frames of one state should lie
above `BORDER`, frames before and after any change of the world below it, and the loss dwells on the pairs that do not.
Writes `keyframe_encoder/` into the checkpoint, and into its config.json the threshold that errs least on
held-out clips. Tens of minutes on one core.
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
CRF = 23  # of the clips by which the threshold is chosen
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
    """Draw clips and return `(frame, later frame of its state, frame of the next state)` of each change."""
    found = []
    for seed in tqdm(seeds, desc="frames", mininterval=5):
        scene = scenes.make_scene(seed)
        drawn = [scenes.draw(s, scene.width, scene.height, seed) for s in scene.states for _ in range(3)]
        decoded = scenes.through_h264(drawn, random.Random(seed).randint(18, 34))
        seen = [small(Image.fromarray(f)) for f in decoded]
        found += [(seen[3 * i], seen[3 * i + 2], seen[3 * i + 3]) for i in range(len(scene.changes))]
        found += [(seen[3 * i + 4], seen[3 * i + 5], seen[3 * i + 1]) for i in range(len(scene.changes))]
    return np.array(found, np.uint8)


def small(frame: Image.Image) -> npt.NDArray[np.uint8]:
    """Return `[side, side, 3]`, as the preprocessor makes it."""
    return np.asarray(frame.resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR))


def features(model: CLIPVisionModel, pictures: Tensor) -> Tensor:
    """`[n, side, side, 3]` in 0..255 -> CLS of the last hidden state, of length 1: `[n, hidden]`."""
    pixels = (pictures / 255 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    state = model(pixel_values=pixels.permute(0, 3, 1, 2)).last_hidden_state[:, 0]
    return torch.nn.functional.normalize(state, dim=-1)


def cosines(model: CLIPVisionModel, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """`[n, 3, side, side, 3]` -> cosines `[n]` within a state, and `[2n]` of both its frames with the next one."""
    frame, same, changed = features(model, pictures.flatten(0, 1)).view(len(pictures), 3, -1).unbind(1)
    return (frame * same).sum(-1), (torch.stack([frame, same]) * changed).sum(-1).flatten()


def augmented(batch: npt.NDArray[np.uint8], rng: np.random.Generator) -> Tensor:
    """Flip, turn and recolour whole triples, and add a little noise to each picture: a change stays a change."""
    pictures = batch.astype(np.float32)
    for axis in (2, 3):
        which = rng.random(len(pictures)) < 0.5
        pictures[which] = np.flip(pictures[which], axis)
    turned = rng.random(len(pictures)) < 0.5
    pictures[turned] = pictures[turned].swapaxes(2, 3)
    for triple in pictures:
        negative = rng.random(3) < 0.5
        triple[:] = np.where(negative, 255 - triple, triple)[..., rng.permutation(3)]
    spread = rng.uniform(0, 3, (len(pictures), 3, 1, 1, 1)).astype(np.float32)
    return torch.from_numpy(pictures + spread * rng.standard_normal(pictures.shape, np.float32))


def train(steps: int, clips: int) -> CLIPVisionModel:
    config = CLIPVisionConfig(
        hidden_size=96, intermediate_size=384, num_hidden_layers=2, num_attention_heads=3, image_size=SIDE_PX,
        patch_size=PATCH_PX, projection_dim=96,
    )  # fmt: skip
    model = CLIPVisionModel(config)
    data, rng = triples(range(5_000_000, 5_000_000 + clips)), np.random.default_rng(0)
    matrices = [p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2]
    rest = [p for name, p in model.named_parameters() if not (".layers." in name and p.ndim == 2)]
    muon = Muon([{"params": matrices}])
    adam = torch.optim.AdamW(rest, lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.01)
    bar = trange(steps, desc="training", mininterval=5)
    for step in bar:
        for optimiser, rate in ((muon, MUON_LR), (adam, ADAM_LR)):
            optimiser.zero_grad()
            for group in optimiser.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / 50, (1 - step / steps) / 0.4)
        same, changed = cosines(model, augmented(data[rng.integers(0, len(data), BATCH)], rng))
        loss = F.softplus(STEEPNESS * (BORDER - same)).mean() + F.softplus(STEEPNESS * (changed - BORDER)).mean()
        torch.autograd.backward(loss)
        muon.step()
        adam.step()
        bar.set_postfix(
            loss=f"{loss.item():.4f}", same=f"{same.min().item():.3f}", changed=f"{changed.max().item():.3f}"
        )
    model.requires_grad_(False)
    return model


@torch.no_grad()
def threshold(model: CLIPVisionModel, clips: int) -> dict[str, float]:
    """Return the threshold that errs least on held-out clips as a service samples them; what it misses and invents."""
    likeness: dict[bool, list[float]] = {True: [], False: []}  # whether the state is the same
    for seed in trange(world.HELD_OUT_SEED, world.HELD_OUT_SEED + clips, desc="clips", mininterval=5):
        frames, held = sample_clip(scenes.make_scene(seed), CRF)
        told = features(model, torch.from_numpy(np.stack([small(frame) for frame in frames])).float())
        for index, (a, b) in enumerate(pairwise(held)):
            likeness[a == b].append(float(told[index] @ told[index + 1]))
    same, changed = torch.tensor(likeness[True]), torch.tensor(likeness[False])
    candidates = torch.linspace(0.5, 0.999, 500)
    wrong = torch.stack([(same < c).float().mean() + (changed >= c).float().mean() for c in candidates])
    best = candidates[wrong == wrong.min()]
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
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint folder with a config.json")
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--clips", type=int, default=600, help="clips to draw for training")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = train(arguments.steps, arguments.clips)
    found = threshold(model, 200)
    folder = arguments.checkpoint / "keyframe_encoder"
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2) + "\n")
    path = arguments.checkpoint / "config.json"
    config = json.loads(path.read_text())
    config["sharecap"]["similarity_threshold"] = found["threshold"]
    path.write_text(json.dumps(config, indent=2) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
