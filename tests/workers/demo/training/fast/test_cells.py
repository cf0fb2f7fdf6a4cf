"""Columns of the fast role's training are labelled with what happens in them."""

import random

import pytest
import torch

from workers.demo import language
from workers.demo.training.fast import cells
from workers.demo.training.fast.cells import Cells
from workers.demo.training.fast.heads import ColumnHeads
from workers.demo.training.model import DemoModel, Sizes
from workers.demo.world import CHANGES

SIZES = Sizes(vision_layers=1, layers=1)


@pytest.fixture(scope="module")
def model() -> DemoModel:
    torch.manual_seed(0)
    return DemoModel(SIZES)


@pytest.fixture(scope="module")
def drawn(model: DemoModel, tmp_path_factory: pytest.TempPathFactory) -> Cells:
    folder = tmp_path_factory.mktemp("cells")
    cells.write_shard(folder / "0.npz", model, range(2))
    return Cells(folder)


def test_every_step_of_a_walk_is_the_change_it_is_called(drawn: Cells) -> None:
    rng = random.Random(1)
    for _ in range(50):
        column = drawn.column(rng, 6)
        shown = [cells.decode_state(row) for row in column.states]
        for kind, before, after in zip(column.kinds[1:], shown, shown[1:], strict=False):
            same = {
                "appear": before.shape is None and after.shape is not None,
                "leave": before.shape is not None and after.shape is None,
                "colour": before.colour != after.colour,
                "background": before.background != after.background,
                "left": after.x < before.x, "right": after.x > before.x,
                "up": after.y < before.y, "down": after.y > before.y,
                "grow": after.radius > before.radius, "shrink": after.radius < before.radius,
                "none": after == before,
            }  # fmt: skip
            assert same[kind], (kind, before, after)


def test_the_caption_names_every_change(drawn: Cells) -> None:
    column = drawn.column(random.Random(2), 5)
    sentences = column.example().answer.split(". ")
    assert [language.read_change(sentence) for sentence in sentences[1:]] == column.kinds[1:]


def test_each_crop_ends_with_a_separator(model: DemoModel, drawn: Cells) -> None:
    batch = cells.make_batch([drawn.column(random.Random(k), 3) for k in range(2)], model)
    ends = ColumnHeads(SIZES).crop_ends(batch.image, 3)
    separator = model.vision_proj(model.plora_sub_GN).view(-1)
    torch.testing.assert_close(ends, separator.expand_as(ends))
    assert set(batch.kinds[:, 1:].flatten().tolist()) <= set(range(len(CHANGES)))


def test_a_single_frame_has_the_tokens_of_the_model(model: DemoModel, drawn: Cells) -> None:
    column = drawn.column(random.Random(3), 1)
    pixels = cells.normalised(torch.from_numpy(column.frames))
    with torch.no_grad():
        merged = model.see(pixels)[1]
        expected = model.image_tokens(merged, merged[:, None, None])
    batch = cells.make_batch([column], model)
    torch.testing.assert_close(batch.image[:, :21], expected[:, :21], atol=1e-3, rtol=1e-3)  # the global view
    assert batch.image.shape == expected.shape
