"""Training pictures of the demo world: scenes -> H.264 and back -> the plugin's own crops -> shards on disk.

Second stage of training. Texts are not stored: they are drawn afresh from the states each time a picture is used.

    python -m workers.demo.training.data --out DIR --clips 2000 --first-seed 0      # writes one shard
"""

import argparse
import io
import random
from bisect import bisect_right
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

from workers.demo import scenes
from workers.demo.world import BACKGROUNDS, CHANGES, COLOURS, SHAPES, Scene, State
from workers.video.collage import PAIR_GAP_PX, stack_pair
from workers.xcomposer2.hd_tiling import plan_tiling
from workers.xcomposer2.image import pad_image

Sample = tuple[npt.NDArray[np.uint8], int, list[list[float]]]  # crop, kind, states

CROP_PX = 112
SAMPLE_S, FPS = 2, 12  # of clips as a service watches them
SINGLE = len(CHANGES)  # `kind` of a picture of one frame
FIELDS = 7  # of a stored state: shape, colour, background, x, y, radius (crop fractions), present


def record(state: State, scene: Scene, second: bool, pair: bool) -> list[float]:
    """Return the numbers of one state as the crop shows it; places are fractions of the crop's side."""
    width, height = scene.width, scene.height * (2 if pair else 1) + (PAIR_GAP_PX if pair else 0)
    top = (scene.height + PAIR_GAP_PX) if second else 0
    long = max(width, height)
    x = 0.5 + (state.x * scene.width - width / 2) / long
    y = 0.5 + (state.y * scene.height + top - height / 2) / long
    shape = SHAPES.index(state.shape) if state.shape else len(SHAPES)
    colour, background = list(COLOURS).index(state.colour), list(BACKGROUNDS).index(state.background)
    radius = state.radius * min(scene.width, scene.height) / long
    return [shape, colour, background, x, y, radius, float(state.shape is not None)]


def unrecord(row: npt.NDArray[np.float32]) -> State:
    """Return the state of a stored row; its place and size are the crop's."""
    shape = SHAPES[int(row[0])] if row[0] < len(SHAPES) else None
    return State(shape, list(COLOURS)[int(row[1])], list(BACKGROUNDS)[int(row[2])], *map(float, row[3:6]))


REVERSED = {"left": "right", "up": "down", "grow": "shrink", "leave": "appear"}
REVERSED |= {after: before for before, after in REVERSED.items()}


def reverse(kind: str) -> str:
    """Return the change that undoes `kind`."""
    return REVERSED.get(kind, kind)


def crop_of(picture: Image.Image) -> npt.NDArray[np.uint8]:
    """Return `[112, 112, 3]`: the padded picture, which at one crop is both the global view and the only tile."""
    return np.asarray(pad_image(picture, plan_tiling(picture.width, picture.height, 1, CROP_PX)))


def pictures(scene: Scene, rng: random.Random) -> list[Sample]:
    """Return `(crop, kind, [state, state])` of every frame, every step both ways, and one step without a change."""
    drawn = [scenes.draw(s, scene.width, scene.height, scene.seed) for s in scene.states]
    decoded = scenes.through_h264([d for d in drawn for _ in range(2)], rng.randint(18, 32))
    shown = [Image.fromarray(f) for f in decoded]
    samples = []
    for index, state in enumerate(scene.states):
        row = record(state, scene, False, False)
        samples.append((crop_of(shown[2 * index + 1]), SINGLE, [row, row]))

    def pair(a: int, b: int, kind: str) -> None:
        rows = [record(scene.states[a // 2], scene, False, True), record(scene.states[b // 2], scene, True, True)]
        samples.append((crop_of(stack_pair(shown[a], shown[b])), CHANGES.index(kind), rows))

    for index, kind in enumerate(scene.changes):
        pair(2 * index + 1, 2 * index + 2, kind)
        pair(2 * index + 3, 2 * index, reverse(kind))
    still = rng.randrange(len(scene.states))
    pair(2 * still, 2 * still + 1, "none")
    return samples


def sampled(scene: Scene, crf: int) -> tuple[list[Image.Image], list[int]]:
    """Return the frames of the scene's clip, 2 s apart, as a service samples it, and which state each one shows."""
    file = io.BytesIO()
    scenes.write_clip(file, scene, fps=FPS, crf=crf)
    file.seek(0)
    with av.open(file, "r") as container:
        wanted = [f for i, f in enumerate(container.decode(video=0)) if i % (SAMPLE_S * FPS) == 0]
    starts = [round(time_s * FPS) for time_s in scene.change_times_s()]
    held = [bisect_right(starts, index * SAMPLE_S * FPS) for index in range(len(wanted))]
    return [Image.fromarray(frame.to_ndarray(format="rgb24")) for frame in wanted], held


def watched(scene: Scene, rng: random.Random) -> list[Sample]:
    """Return a pair for every two samples 2 s apart of the scene's clip.

    Most of its still pairs lie in different places of the encoder's group of pictures: still, but not the same pixels.
    """
    shown, held = sampled(scene, rng.randint(20, 28))
    samples = []
    for index, (a, b) in enumerate(pairwise(held)):
        if b - a <= 1:
            kind = scene.changes[a] if b > a else "none"
            rows = [record(scene.states[a], scene, False, True), record(scene.states[b], scene, True, True)]
            samples.append((crop_of(stack_pair(shown[index], shown[index + 1])), CHANGES.index(kind), rows))
    return samples


def write_shard(path: Path, seeds: range, view: Callable[[Scene, random.Random], list[Sample]]) -> None:
    """Write the pictures of these scenes: `crops` uint8 [N, 112, 112, 3], `kind` [N], `states` [N, 2, 7]."""
    samples = [s for seed in seeds for s in view(scenes.make_scene(seed), random.Random(seed))]
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(
            file,
            crops=np.stack([crop for crop, _, _ in samples]),
            kind=np.array([kind for _, kind, _ in samples], np.int64),
            states=np.array([rows for _, _, rows in samples], np.float32),
        )
    partial.rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw training shards of the demo world.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--clips", type=int, default=500, help="clips in a shard (about 14 pictures each)")
    parser.add_argument("--shards", type=int, default=1, help="how many, one after another")
    parser.add_argument("--watched", action="store_true", help="only pairs as a service samples a clip")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for index in range(arguments.shards):
        first = arguments.first_seed + index * arguments.clips
        path = arguments.out / f"{first:012d}.npz"
        if not path.exists():
            view = watched if arguments.watched else pictures
            write_shard(path, range(first, first + arguments.clips), view)


if __name__ == "__main__":
    main()
