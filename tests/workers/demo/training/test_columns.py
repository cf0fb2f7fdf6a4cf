"""Columns of keyframes: their texts and labels describe what the tiles show."""

import random

import numpy as np
import pytest

from workers.demo import language, scenes
from workers.demo.training import columns
from workers.demo.training.data import CROP_PX
from workers.demo.world import CHANGES, COLOURS, SHAPES, State
from workers.xcomposer2.hd_tiling import plan_tiling
from workers.xcomposer2.image import padded_pixels


@pytest.mark.parametrize("size", [(320, 180), (180, 320), (384, 160)])
@pytest.mark.parametrize("count", [2, 8])
def test_patch_labels_name_the_colour_under_the_patch(size: tuple[int, int], count: int) -> None:
    states = tuple(State("circle", list(COLOURS)[k], "white", x=0.4, radius=0.35) for k in range(count))
    column = columns.column_of(size, states, ("none",) * count, random.Random(0))
    tiling = plan_tiling(*column.image.size, columns.FAST_HD_NUM, CROP_PX)
    padded = padded_pixels(column.image, tiling).astype(int)
    shapes, colours = columns.patch_labels(column, tiling)
    half = columns.PATCH_PX // 2
    centres = padded[half :: columns.PATCH_PX, half :: columns.PATCH_PX]
    covered = shapes == SHAPES.index("circle")
    assert set(colours[covered].tolist()) == set(range(count)) and shapes.shape == colours.shape == centres.shape[:2]
    distance = np.abs(centres[covered] - np.array(list(COLOURS.values()))[colours[covered]]).max(-1)
    assert (distance < 40).mean() > 0.8  # the other patches lie on an edge


@pytest.mark.parametrize("size", scenes.SIZES)
@pytest.mark.parametrize("count", [2, 5, 8])
def test_every_frame_is_complete_in_some_token_row(size: tuple[int, int], count: int) -> None:
    column = columns.draw_column(random.Random(1), size, count)
    rows = columns.row_frames(column, plan_tiling(*column.image.size, columns.FAST_HD_NUM, CROP_PX))
    assert set(range(1, count + 1)) <= set(rows.tolist()) and sorted(rows) == rows.tolist()


def test_the_answer_names_every_change_in_order() -> None:
    column = columns.draw_column(random.Random(2), (320, 180), 6)
    _, *sentences = column.example().answer.split(" In frame ")
    assert [sentence[0] for sentence in sentences] == ["2", "3", "4", "5", "6"]
    assert tuple(language.read_change(sentence) for sentence in sentences) == column.changes[1:]


def test_a_batch_has_labels_for_every_frame() -> None:
    rng = random.Random(3)
    batch = columns.make_batch([columns.draw_column(rng, (320, 180), 5) for _ in range(2)])
    assert batch.pixels.shape == (2, 1 + batch.tiling.rows * batch.tiling.cols, 3, CROP_PX, CROP_PX)
    assert batch.looks.shape == batch.places.shape == (2, 5, 3)
    assert batch.changes[:, 0].tolist() == [len(CHANGES)] * 2
