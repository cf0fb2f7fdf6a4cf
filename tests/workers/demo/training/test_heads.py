"""The auxiliary heads of columns read the right tokens and patches."""

import random

import pytest
import torch

from workers.demo.training import columns
from workers.demo.training.columns import ColumnBatch
from workers.demo.training.heads import ColumnHeads
from workers.demo.training.model import DemoModel, Sizes

SIZES = Sizes(vision_layers=1, layers=1)


@pytest.fixture(scope="module")
def batch() -> ColumnBatch:
    rng = random.Random(0)
    return columns.make_batch([columns.draw_column(rng, (320, 180), 5) for _ in range(2)])


def test_row_ends_are_the_row_separators(batch: ColumnBatch) -> None:
    model, heads = DemoModel(SIZES), ColumnHeads(SIZES)
    model.vision_proj = torch.nn.Identity()
    image = columns.image_tokens(model, model.see(batch.pixels.flatten(0, 1))[1], batch)
    ends = heads.row_ends(image, batch)
    assert ends.shape[:2] == (2, len(batch.row_frames))
    assert torch.equal(ends, model.plora_sub_GN[0].expand_as(ends))


def test_patches_are_laid_out_as_in_the_padded_image(batch: ColumnBatch) -> None:
    heads, grid = ColumnHeads(SIZES), SIZES.grid
    rows, cols = batch.tiling.rows * grid, batch.tiling.cols * grid
    numbers = torch.arange(rows * cols).view(1, rows, cols, 1)
    tiles = numbers.view(1, batch.tiling.rows, grid, batch.tiling.cols, grid, 1).transpose(2, 3)
    patches = torch.cat([torch.zeros(1, 1, grid**2, 1), tiles.reshape(1, -1, grid**2, 1)], 1)
    assert torch.equal(heads.tile_patches(patches, batch), numbers.float())
