"""Training pictures of the demo world: scenes -> H.264 and back -> the plugin's crops -> shards -> training batches.

Shards store no texts. Training writes new texts from the states each time it uses a picture.

    python -m workers.demo.training.data --out DIR --clips 2000 --first-seed 0      # writes one shard
"""

import argparse
import io
import random
from bisect import bisect_right
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from workers.demo import scenes
from workers.demo.world import BACKGROUNDS, CHANGES, COLOURS, SHAPES, Scene, State
from workers.video.collage import PAIR_GAP_PX, stack_pair
from workers.xcomposer2.hd_tiling import plan_tiling
from workers.xcomposer2.image import CLIP_MEAN, CLIP_STD, padded_pixels

CROP_PX = 112
SAMPLE_S, FPS = 2, 12  # the service samples a clip every 2 s
SINGLE = len(CHANGES)  # the `kind` of a picture that shows one frame
GEOMETRIC = ("left", "right", "up", "down", "grow", "shrink")
OPPOSITES = {"left": "right", "up": "down", "grow": "shrink", "leave": "appear"}
OPPOSITES |= {after: before for before, after in OPPOSITES.items()}
MIRRORED_KINDS = list(range(SINGLE + 1))  # `kind` after a left-right flip
MIRRORED_KINDS[CHANGES.index("left")], MIRRORED_KINDS[CHANGES.index("right")] = (
    CHANGES.index("right"),
    CHANGES.index("left"),
)


class Picture(NamedTuple):
    """One stored picture: a single frame or a stacked pair."""

    crop: npt.NDArray[np.uint8]  # [112, 112, 3]
    kind: int  # index into CHANGES, or SINGLE
    states: list[list[float]]  # two rows of `encode_state`; equal for a single frame


def encode_state(state: State, scene: Scene, second: bool, pair: bool) -> list[float]:
    """Return `[shape, colour, background, x, y, radius, present]` as the crop shows the state.

    Place and radius are fractions of the crop's side. `second` selects the lower frame of a pair.
    """
    width, height = scene.width, scene.height * (2 if pair else 1) + (PAIR_GAP_PX if pair else 0)
    top = (scene.height + PAIR_GAP_PX) if second else 0
    long = max(width, height)
    x = 0.5 + (state.x * scene.width - width / 2) / long
    y = 0.5 + (state.y * scene.height + top - height / 2) / long
    radius = state.radius * min(scene.width, scene.height) / long
    return [*encode_look(state), x, y, radius, float(state.shape is not None)]


def encode_look(state: State) -> tuple[int, int, int]:
    """Return the class indices of shape, colour and background. A missing shape has the index after the last."""
    shape = SHAPES.index(state.shape) if state.shape else len(SHAPES)
    return shape, list(COLOURS).index(state.colour), list(BACKGROUNDS).index(state.background)


def decode_state(row: npt.NDArray[np.float32]) -> State:
    """Return the state of an encoded row. Its place and size remain fractions of the crop."""
    shape = SHAPES[int(row[0])] if row[0] < len(SHAPES) else None
    return State(shape, list(COLOURS)[int(row[1])], list(BACKGROUNDS)[int(row[2])], *map(float, row[3:6]))


def opposite(kind: str) -> str:
    """Return the change that undoes `kind`."""
    return OPPOSITES.get(kind, kind)


def crop_of(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return the padded image `[112, 112, 3]`. With one crop it is both the global view and the only tile."""
    return padded_pixels(image, plan_tiling(image.width, image.height, 1, CROP_PX))


def pair_picture(images: list[Image.Image], states: list[State], scene: Scene, kind: str) -> Picture:
    """Return the picture of two stacked frames."""
    rows = [encode_state(state, scene, second, True) for state, second in zip(states, (False, True), strict=True)]
    return Picture(crop_of(stack_pair(*images)), CHANGES.index(kind), rows)


def all_pictures(scene: Scene, rng: random.Random) -> list[Picture]:
    """Return a picture of every frame, of every change in both directions, and of one pair without a change."""
    drawn = [scenes.draw(s, scene.width, scene.height, scene.seed) for s in scene.states]
    decoded = scenes.through_h264([d for d in drawn for _ in range(2)], rng.randint(18, 32))
    images = [Image.fromarray(frame) for frame in decoded]  # two of each state
    pictures = []
    for index, state in enumerate(scene.states):
        row = encode_state(state, scene, False, False)
        pictures.append(Picture(crop_of(images[2 * index + 1]), SINGLE, [row, row]))

    def pair(a: int, b: int, kind: str) -> Picture:
        return pair_picture([images[a], images[b]], [scene.states[a // 2], scene.states[b // 2]], scene, kind)

    for index, kind in enumerate(scene.changes):
        pictures.append(pair(2 * index + 1, 2 * index + 2, kind))
        pictures.append(pair(2 * index + 3, 2 * index, opposite(kind)))
    still = rng.randrange(len(scene.states))
    return [*pictures, pair(2 * still, 2 * still + 1, "none")]


def sample_clip(scene: Scene, crf: int) -> tuple[list[Image.Image], list[int]]:
    """Return frames of the scene's clip every 2 s, as the service samples it, and the index of each frame's state."""
    file = io.BytesIO()
    scenes.write_clip(file, scene, fps=FPS, crf=crf)
    file.seek(0)
    with av.open(file, "r") as container:
        frames = [f for i, f in enumerate(container.decode(video=0)) if i % (SAMPLE_S * FPS) == 0]
    starts = [round(time_s * FPS) for time_s in scene.change_times_s()]
    states = [bisect_right(starts, index * SAMPLE_S * FPS) for index in range(len(frames))]
    return [Image.fromarray(frame.to_ndarray(format="rgb24")) for frame in frames], states


def sampled_pairs(scene: Scene, rng: random.Random) -> list[Picture]:
    """Return a picture of every two consecutive samples, 2 s apart, of the scene's clip.

    Most still pairs lie at different positions of the encoder's group of pictures, so their pixels differ slightly.
    """
    images, held = sample_clip(scene, rng.randint(20, 28))
    return [
        pair_picture(
            images[i : i + 2], [scene.states[a], scene.states[b]], scene, scene.changes[a] if b > a else "none"
        )
        for i, (a, b) in enumerate(pairwise(held))
        if b - a <= 1
    ]


def write_shard(path: Path, seeds: range, draw: Callable[[Scene, random.Random], list[Picture]]) -> None:
    """Write the pictures of these scenes: `crops` uint8 `[N, 112, 112, 3]`, `kind` `[N]`, `states` `[N, 2, 7]`."""
    pictures = [picture for seed in seeds for picture in draw(scenes.make_scene(seed), random.Random(seed))]
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(
            file,
            crops=np.stack([picture.crop for picture in pictures]),
            kind=np.array([picture.kind for picture in pictures], np.int64),
            states=np.array([picture.states for picture in pictures], np.float32),
        )
    partial.rename(path)


class PictureBatch(NamedTuple):
    pixels: Tensor  # [n, 3, side, side]
    kinds: Tensor  # [n]
    states: Tensor  # [n, 2, 7]


class Pictures:
    """All shards of a folder, in memory. `refresh` adds new shards."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder, self.rng = folder, np.random.default_rng(seed)
        self.crops: list[npt.NDArray[np.uint8]] = []
        self.kinds, self.states = np.zeros(0, np.int64), np.zeros((0, 2, 7), np.float32)
        self.positions = np.zeros((0, 2), np.int64)  # (shard, index in the shard) of each picture
        self.loaded: set[Path] = set()
        self.refresh()

    def refresh(self) -> None:
        for path in sorted(set(self.folder.glob("*.npz")) - self.loaded):
            shard = np.load(path)
            count = len(shard["kind"])
            positions = np.stack([np.full(count, len(self.crops)), np.arange(count)], 1)
            self.crops.append(shard["crops"])
            self.kinds = np.concatenate([self.kinds, shard["kind"]])
            self.states = np.concatenate([self.states, shard["states"]])
            self.positions = np.concatenate([self.positions, positions])
            self.loaded.add(path)

    def __len__(self) -> int:
        return len(self.kinds)

    def take(self, index: npt.NDArray[np.int64], flip: bool) -> PictureBatch:
        """Return the pictures at `index`. If `flip`, half of them are mirrored left-right, with their labels."""
        crops = np.stack([self.crops[shard][place] for shard, place in self.positions[index]])
        kinds, states = self.kinds[index].copy(), self.states[index].copy()
        if flip:
            flipped = self.rng.random(len(index)) < 0.5
            crops[flipped] = crops[flipped][:, :, ::-1]
            kinds[flipped] = np.array(MIRRORED_KINDS)[kinds[flipped]]
            states[flipped, :, 3] = 1 - states[flipped, :, 3]
        return PictureBatch(normalised(torch.from_numpy(crops)), torch.from_numpy(kinds), torch.from_numpy(states))

    def draw(self, pairs: int, singles: int) -> PictureBatch:
        """Return `pairs` random pictures of two frames, then `singles` of one frame; half of them are mirrored.

        A fifth of the pairs is still, because a clip's last sample is always a keyframe and usually shows no change.
        A quarter changes in colour, background or presence, which is learned easily. The rest moves or resizes.
        """
        still, single = self.kinds == CHANGES.index("none"), self.kinds == SINGLE
        geometric = np.isin(self.kinds, [CHANGES.index(kind) for kind in GEOMETRIC])
        others = ~(still | single | geometric)
        moves = pairs - pairs // 5 - pairs // 4
        counts = ((geometric, moves), (others, pairs // 4), (still, pairs // 5), (single, singles))
        index = np.concatenate([self.rng.choice(np.flatnonzero(which), count) for which, count in counts])
        return self.take(index, flip=True)


def normalised(crops: Tensor) -> Tensor:
    """Convert uint8 `[n, side, side, 3]` to `[n, 3, side, side]`, normalised as in the plugin's `image.py`."""
    mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
    return ((crops.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw training shards of the demo world.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first clip")
    parser.add_argument("--clips", type=int, default=500, help="clips per shard (about 14 pictures each)")
    parser.add_argument("--shards", type=int, default=1, help="number of shards, written one after another")
    parser.add_argument("--sampled", action="store_true", help="draw only pairs of frames as the service samples them")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for index in range(arguments.shards):
        first = arguments.first_seed + index * arguments.clips
        path = arguments.out / f"{first:012d}.npz"
        if not path.exists():
            draw = sampled_pairs if arguments.sampled else all_pictures
            write_shard(path, range(first, first + arguments.clips), draw)


if __name__ == "__main__":
    main()
