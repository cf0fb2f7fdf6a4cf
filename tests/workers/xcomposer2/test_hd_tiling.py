"""HD tiling: the published example, the crop budget, and agreement of token counts and crops."""

import math
import random

import numpy as np
import pytest
import torch
from PIL import Image

from workers.xcomposer2.hd_tiling import plan_tiling
from workers.xcomposer2.image import CLIP_MEAN, CLIP_STD, crops, padded_pixels


def test_published_example() -> None:
    tiling = plan_tiling(1024, 1202, hd_num=9)
    assert (tiling.rows, tiling.cols) == (3, 3)
    assert tiling.image_tokens(12) == 1489


@pytest.mark.parametrize(
    ("size", "hd_num", "grid"),
    [
        ((336, 336), 1, (1, 1)),
        ((800, 100), 9, (1, 8)),
        ((100, 800), 9, (8, 1)),
        ((1920, 1080), 9, (2, 3)),
        ((1080, 1920), 9, (3, 2)),
        ((1000, 1000), 55, (7, 7)),
        ((10_000, 1), 4, (1, 4)),
        ((640, 480), 16, (3, 4)),
    ],
)
def test_known_grids(size: tuple[int, int], hd_num: int, grid: tuple[int, int]) -> None:
    tiling = plan_tiling(*size, hd_num=hd_num)
    assert (tiling.rows, tiling.cols) == grid


def test_budget_and_symmetry_hold_for_any_size() -> None:
    rng = random.Random(7)
    for _ in range(3000):
        width, height = rng.randint(1, 4000), rng.randint(1, 4000)
        hd_num, crop = rng.randint(1, 55), rng.choice([28, 112, 336])
        tiling = plan_tiling(width, height, hd_num, crop)
        mirror = plan_tiling(height, width, hd_num, crop)
        assert 1 <= tiling.rows * tiling.cols <= hd_num
        assert (tiling.rows, tiling.cols) == (mirror.cols, mirror.rows)
        assert tiling.pad_before + tiling.resized[1] + tiling.pad_after == min(tiling.padded_size)
        assert 0 <= tiling.pad_after - tiling.pad_before <= 1
        # one more crop along the long side would exceed the budget
        ratio = max(width, height) / min(width, height)
        scale = max(tiling.rows, tiling.cols)
        assert (scale + 1) * math.ceil((scale + 1) / ratio) > hd_num


@pytest.mark.parametrize("arguments", [(0, 10, 9), (10, 0, 9), (10, 10, 0), (10, 10, -1)])
def test_invalid_input_is_rejected(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"image must have pixels|hd_num must be at least 1"):
        plan_tiling(*arguments)


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (61, 17), (9, 300), (64, 64)])
def test_crops_are_the_tiles_of_the_padded_image(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    tiling = plan_tiling(*size, hd_num=6, crop=28)
    cut = crops(image, tiling)
    assert cut.shape == (1 + tiling.rows * tiling.cols, 3, 28, 28)
    assert cut.dtype == torch.float32
    padded = padded_pixels(image, tiling)
    assert padded.shape == (*reversed(tiling.padded_size), 3)
    pixels = (cut * torch.tensor(CLIP_STD).view(3, 1, 1) + torch.tensor(CLIP_MEAN).view(3, 1, 1)) * 255
    for n in range(tiling.rows * tiling.cols):
        x, y = n % tiling.cols * 28, n // tiling.cols * 28
        tile = padded[y : y + 28, x : x + 28]
        assert np.abs(pixels[1 + n].permute(1, 2, 0).numpy() - tile).max() < 1e-2


def test_padding_is_white_and_extends_the_short_side() -> None:
    black = Image.new("RGB", (300, 100))
    wide = padded_pixels(black, plan_tiling(300, 100, hd_num=2, crop=28))
    assert (wide[0] == 255).all()
    assert (wide[-1] == 255).all()
    tall = padded_pixels(black.rotate(90, expand=True), plan_tiling(100, 300, hd_num=2, crop=28))
    assert (tall[:, 0] == 255).all()
    assert np.array_equal(tall, wide.transpose(1, 0, 2))


@pytest.mark.parametrize("size", [(60, 90), (17, 61), (9, 300), (1, 40), (200, 201), (700, 1100)])
def test_a_tall_image_has_the_pixels_of_its_transposed_image(size: tuple[int, int]) -> None:
    tall = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    wide = np.ascontiguousarray(tall.transpose(1, 0, 2))
    for hd_num in (1, 6, 9):
        expected = padded_pixels(Image.fromarray(wide), plan_tiling(size[1], size[0], hd_num, crop=28))
        actual = padded_pixels(Image.fromarray(tall), plan_tiling(*size, hd_num, crop=28))
        assert np.array_equal(actual, expected.transpose(1, 0, 2))
