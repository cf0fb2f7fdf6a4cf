"""Training columns of the fast role: all keyframes of a drawn clip in one tall image, with labels for each part of it.

Columns are drawn during training and never stored, so training never repeats one. All columns of a batch have one frame
size and one number of frames, hence one tiling.
"""

import random
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from workers.demo import examples, scenes
from workers.demo.examples import Example
from workers.demo.language import Step
from workers.demo.training.data import CROP_PX, SINGLE, encode_look
from workers.demo.training.model import DemoModel
from workers.demo.world import CHANGES, COLOURS, SHAPES, State
from workers.video.collage import BORDER_PX, FRAME_GAP_PX, label_margin_px, stack_all
from workers.xcomposer2.hd_tiling import Tiling, plan_tiling
from workers.xcomposer2.image import crops

FAST_HD_NUM = 8
PATCH_PX, TOKEN_PX = 14, 28  # side of a patch, and of an image token (2 x 2 patches)
STILL, LAST_STILL = 0.08, 0.5  # share of steps without a change, and of last steps
ROW_TOLERANCE_PX = 4  # a frame counts as complete in a token row that hides no more of it than this


@dataclass(frozen=True)
class Column:
    """One clip's keyframes, stacked. `changes[k]` leads to `states[k]`; the first is "none"."""

    image: Image.Image
    size: tuple[int, int]  # (width, height) of one frame, pixels
    states: tuple[State, ...]
    changes: tuple[str, ...]

    def steps(self) -> list[Step]:
        return list(zip(self.changes[1:], self.states, self.states[1:], strict=False))

    def example(self) -> Example:
        return examples.fast(self.states[0], self.steps())


@dataclass(frozen=True)
class ColumnBatch:
    """Columns of one tiling as the model takes them, with the labels of the auxiliary heads.

    Patches and token rows are those of the tiles laid out as one grid, without the global view.
    """

    tiling: Tiling
    pixels: Tensor  # [batch, 1 + tiles, 3, side, side]
    examples: list[Example]
    patch_shapes: Tensor  # [batch, patch rows, patch columns]
    patch_colours: Tensor  # [batch, patch rows, patch columns]
    row_frames: Tensor  # [token rows]: number, from 1, of the last frame complete in this row; 0 before the first
    looks: Tensor  # [batch, frames, 3]: class indices of shape, colour, background
    places: Tensor  # [batch, frames, 3]: x, y, radius
    changes: Tensor  # [batch, frames]: index into CHANGES of what led to the frame; SINGLE for the first


def image_tokens(model: DemoModel, merged: Tensor, batch: ColumnBatch) -> Tensor:
    """Return the image tokens `[batch, n, hidden]` of merged features `[batch * (1 + tiles), m², 4·d]`."""
    count, crops_each = batch.pixels.shape[:2]
    by_column = merged.view(count, crops_each, *merged.shape[1:])
    tiles = by_column[:, 1:].reshape(count, batch.tiling.rows, batch.tiling.cols, *merged.shape[1:])
    return model.image_tokens(by_column[:, 0], tiles)


def draw_column(rng: random.Random, size: tuple[int, int], count: int) -> Column:
    """Draw a random clip of `count` keyframes as the service would sample them."""
    states, changes = [scenes.first_state(rng, *size)], ["none"]
    while len(states) < count:
        still = rng.random() < (LAST_STILL if len(states) == count - 1 else STILL)
        kind, state = ("none", states[-1]) if still else scenes.next_state(rng, states[-1], *size)
        states.append(state)
        changes.append(kind)
    return column_of(size, tuple(states), tuple(changes), rng)


def column_of(size: tuple[int, int], states: tuple[State, ...], changes: tuple[str, ...], rng: random.Random) -> Column:
    palette_seed = rng.randrange(1 << 30)
    frames = scenes.through_h264([scenes.draw(state, *size, palette_seed) for state in states], rng.randint(18, 32))
    return Column(stack_all([Image.fromarray(frame) for frame in frames]), size, states, changes)


def make_batch(columns: list[Column], hd_num: int = FAST_HD_NUM) -> ColumnBatch:
    """Cut columns of one size and one number of frames into crops, and label them."""
    tiling = plan_tiling(*columns[0].image.size, hd_num, CROP_PX)
    labels = [patch_labels(column, tiling) for column in columns]
    changes = [[SINGLE, *map(CHANGES.index, column.changes[1:])] for column in columns]
    return ColumnBatch(
        tiling=tiling,
        pixels=torch.stack([crops(column.image, tiling) for column in columns]),
        examples=[column.example() for column in columns],
        patch_shapes=torch.from_numpy(np.stack([shapes for shapes, _ in labels])),
        patch_colours=torch.from_numpy(np.stack([colours for _, colours in labels])),
        row_frames=torch.from_numpy(row_frames(columns[0], tiling)),
        looks=torch.tensor([[encode_look(state) for state in column.states] for column in columns]),
        places=torch.tensor([[(s.x, s.y, s.radius) for s in column.states] for column in columns]),
        changes=torch.tensor(changes),
    )


@dataclass(frozen=True)
class Placement:
    """Where the tiling puts the stacked image: pixels of the stack are scaled, then shifted."""

    scale: float
    left: int
    top: int

    @classmethod
    def of(cls, column: Column, tiling: Tiling) -> "Placement":
        scale = max(tiling.resized) / max(column.image.size)
        return cls(scale, tiling.pad_before, 0) if tiling.transposed else cls(scale, 0, tiling.pad_before)


def frame_tops(column: Column) -> npt.NDArray[np.float64]:
    """Return the top of each frame in pixels of the stacked image."""
    return BORDER_PX + np.arange(len(column.states), dtype=np.float64) * (column.size[1] + FRAME_GAP_PX)


def row_frames(column: Column, tiling: Tiling) -> npt.NDArray[np.int64]:
    """Return for each token row the number of frames that are complete at its lower edge: `[token rows]`."""
    placement = Placement.of(column, tiling)
    bottoms = placement.top + placement.scale * (frame_tops(column) + column.size[1])
    edges = (np.arange(tiling.rows * tiling.crop // TOKEN_PX) + 1) * TOKEN_PX
    return np.searchsorted(bottoms, edges + ROW_TOLERANCE_PX, side="right").astype(np.int64)


def patch_labels(column: Column, tiling: Tiling) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the class index of shape and of colour at each patch's centre: `[patch rows, patch columns]` each.

    A patch outside all shapes has the class after the last.
    """
    placement = Placement.of(column, tiling)
    (width, height), side = column.size, tiling.crop // PATCH_PX
    x = (np.arange(tiling.cols * side)[None] + 0.5) * PATCH_PX
    y = (np.arange(tiling.rows * side)[:, None] + 0.5) * PATCH_PX
    shapes = np.full((tiling.rows * side, tiling.cols * side), len(SHAPES))
    colours = np.full_like(shapes, len(COLOURS))
    margin = label_margin_px(width)
    for state, top in zip(column.states, frame_tops(column), strict=True):
        shape, colour, _ = encode_look(state)
        centre_x = placement.left + placement.scale * (margin + state.x * width)
        centre_y = placement.top + placement.scale * (top + state.y * height)
        radius = placement.scale * state.radius * min(width, height)
        covered = (x - centre_x) ** 2 + (y - centre_y) ** 2 < radius**2
        if state.shape:
            shapes[covered], colours[covered] = shape, colour
    return shapes, colours
