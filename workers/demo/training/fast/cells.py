"""Training columns of the fast role: keyframes of drawn scenes, one per crop, as tokens of the finished vision tower.

The tower does not change any more, so each frame's tokens are computed once, when a shard is drawn. Training assembles
columns from the frames of one scene: it walks forwards and backwards through the states, and sometimes stands still.

    python -m workers.demo.training.fast.cells --checkpoint DIR --out DIR --scenes 5000      # writes shards
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from workers.demo import examples, scenes
from workers.demo.examples import Example
from workers.demo.training import export
from workers.demo.training.data import CROP_PX, SINGLE, encode_state, normalised, opposite
from workers.demo.training.model import DemoModel
from workers.demo.world import BACKGROUNDS, CHANGES, COLOURS, SHAPES, State
from workers.video.collage import WHITE
from workers.xcomposer2.hd_tiling import plan_tiling
from workers.xcomposer2.image import padded_pixels

SCENES_PER_SHARD, STATES = 200, 8
VIEWS = 4  # global views computed for a batch
DECODED = 2  # copies of each state, which differ slightly after H.264
STILL, LAST_STILL, TURN_ROUND = 0.08, 0.5, 0.1  # probabilities at each step, and of a last step without a change


class SceneFrames(NamedTuple):
    """One scene's states, as the model sees them. `changes[i]` leads from state i to the next."""

    frames: npt.NDArray[np.uint8]  # [states, side, side, 3]: crops of the first copy
    tokens: npt.NDArray[np.float16]  # [states, DECODED, m², hidden]: projected tokens of the crops
    states: npt.NDArray[np.float32]  # [states, 10]: `encode_state`, then x, y and radius as fractions of the frame
    changes: npt.NDArray[np.int64]  # [states - 1]: indices into CHANGES


class Column(NamedTuple):
    """Keyframes of one scene in the order of a video. `kinds[i]` is the change into frame i, "none" for the first."""

    frames: npt.NDArray[np.uint8]  # [n, side, side, 3]
    tokens: npt.NDArray[np.float16]  # [n, m², hidden]
    states: npt.NDArray[np.float32]  # [n, 10]
    kinds: list[str]

    def example(self) -> Example:
        shown = [decode_state(row) for row in self.states]
        return examples.fast(shown[0], list(zip(self.kinds[1:], shown, shown[1:], strict=False)))


@dataclass(frozen=True)
class ColumnBatch:
    """Columns with the same number of frames."""

    image: Tensor  # [batch, image tokens, hidden]
    states: Tensor  # [batch, frames, 10]
    kinds: Tensor  # [batch, frames]: index into CHANGES of the change into the frame; SINGLE for the first
    examples: list[Example]


def stack_cells(frames: Sequence[Image.Image]) -> Image.Image:
    """Return all RGB frames stacked in square cells without gaps, each centred in its cell on white.

    The sides of a cell are as long as the longest side of any frame. With `hd_num` equal to the number of frames,
    every crop shows one frame.
    """
    side = max(max(frame.size) for frame in frames)
    stacked = Image.new("RGB", (side, side * len(frames)), WHITE)
    for k, frame in enumerate(frames):
        stacked.paste(frame, ((side - frame.width) // 2, k * side + (side - frame.height) // 2))
    return stacked


def decode_state(row: npt.NDArray[np.float32]) -> State:
    shape = SHAPES[int(row[0])] if row[0] < len(SHAPES) else None
    return State(shape, list(COLOURS)[int(row[1])], list(BACKGROUNDS)[int(row[2])], *map(float, row[7:10]))


@torch.no_grad()
def draw_scene(model: DemoModel, seed: int) -> SceneFrames:
    scene, rng = scenes.make_scene(seed, changes=STATES - 1), random.Random(seed)
    drawn = [scenes.draw(state, scene.width, scene.height, scene.seed) for state in scene.states]
    decoded = scenes.through_h264([picture for picture in drawn for _ in range(DECODED)], rng.randint(18, 32))
    image = stack_cells([Image.fromarray(frame) for frame in decoded])
    pixels = padded_pixels(image, plan_tiling(*image.size, len(decoded), CROP_PX))
    cells = pixels.reshape(len(decoded), CROP_PX, CROP_PX, 3)
    tokens = model.vision_proj(model.see(normalised(torch.from_numpy(cells)))[1])
    states = [[*encode_state(s, scene, False, False), s.x, s.y, s.radius] for s in scene.states]
    return SceneFrames(
        frames=cells[::DECODED],
        tokens=tokens.half().numpy().reshape(STATES, DECODED, *tokens.shape[1:]),
        states=np.array(states, np.float32),
        changes=np.array([CHANGES.index(kind) for kind in scene.changes], np.int64),
    )


def write_shard(path: Path, model: DemoModel, seeds: range) -> None:
    drawn = [draw_scene(model, seed) for seed in seeds]
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        arrays = {name: np.stack([getattr(scene, name) for scene in drawn]) for name in SceneFrames._fields}
        np.savez(file, **arrays)  # type: ignore[arg-type]
    partial.rename(path)


class Cells:
    """All shards of a folder, in memory. `refresh` adds new shards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scenes: list[SceneFrames] = []
        self.loaded: set[Path] = set()
        self.refresh()

    def refresh(self) -> None:
        for path in sorted(set(self.folder.glob("*.npz")) - self.loaded):
            shard = np.load(path)
            arrays = [shard[name] for name in SceneFrames._fields]
            self.scenes += [SceneFrames(*parts) for parts in zip(*arrays, strict=True)]
            self.loaded.add(path)

    def column(self, rng: random.Random, count: int) -> Column:
        """Return a random walk of `count` frames through the states of a random scene."""
        scene = rng.choice(self.scenes)
        place, step, copy = rng.randrange(STATES), rng.choice((-1, 1)), rng.randrange(DECODED)
        places, copies, kinds = [place], [copy], ["none"]
        while len(places) < count:
            if rng.random() < (LAST_STILL if len(places) == count - 1 else STILL):
                copy, kind = 1 - copy, "none"
            else:
                step = -step if rng.random() < TURN_ROUND or not 0 <= place + step < STATES else step
                step = step if 0 <= place + step < STATES else -step
                change = CHANGES[scene.changes[min(place, place + step)]]
                kind = change if step > 0 else opposite(change)
                place, copy = place + step, rng.randrange(DECODED)
            places.append(place)
            copies.append(copy)
            kinds.append(kind)
        return Column(scene.frames[places], scene.tokens[places, copies], scene.states[places], kinds)


@torch.no_grad()
def make_batch(columns: list[Column], model: DemoModel) -> ColumnBatch:
    """Return the image tokens of columns of equal length, and their labels.

    Global views are slow to compute and show little. The first few columns' views therefore serve for all, so that the
    new layers learn not to rely on them.
    """
    tiles = torch.from_numpy(np.stack([column.tokens for column in columns])).float()  # [batch, n, m², hidden]
    frames = torch.from_numpy(np.stack([column.frames for column in columns[:VIEWS]]))
    stacked = normalised(frames.flatten(1, 2))  # [batch, 3, n * side, side]
    view = F.interpolate(stacked, size=(CROP_PX, CROP_PX), mode="bicubic", align_corners=False)
    views = model.vision_proj(model.see(view)[1])[torch.arange(len(columns)) % len(view)]
    kinds = [[SINGLE, *map(CHANGES.index, column.kinds[1:])] for column in columns]
    return ColumnBatch(
        image=model.arranged(views, tiles[:, :, None]),
        states=torch.from_numpy(np.stack([column.states for column in columns])),
        kinds=torch.tensor(kinds),
        examples=[column.example() for column in columns],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw shards of the fast role's training columns.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint with the vision tower")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--first-seed", type=int, default=20_000_000, help="seed of the first scene")
    parser.add_argument("--scenes", type=int, default=5000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = export.read(arguments.checkpoint)
    for first in range(arguments.first_seed, arguments.first_seed + arguments.scenes, SCENES_PER_SHARD):
        path = arguments.out / f"{first:012d}.npz"
        if not path.exists():
            write_shard(path, model, range(first, first + SCENES_PER_SHARD))


if __name__ == "__main__":
    main()
