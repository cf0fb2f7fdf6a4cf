"""Resizes and pads an image, cuts it into tiles, and turns the tiles into the crops that the vision tower receives.

`processor.py` cuts the tiles in vLLM's front-end process and sends them as uint8, a quarter of the bytes of float32.
`model.py` computes the global view and the normalisation on its own device. All sizes come from
`hd_tiling.plan_tiling`. The training of the demo model uses the same functions.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from workers.xcomposer2.hd_tiling import Tiling

# CLIP's normalisation (openai/CLIP), for RGB in 0..1
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
WHITE = (255, 255, 255)


def padded_pixels(image: Image.Image, tiling: Tiling) -> np.ndarray:
    """Return uint8 [height, width, 3]: `image` as RGB, resized and padded with white to `tiling.padded_size`."""
    width, height = tiling.padded_size
    pixels = np.full((height, width, 3), WHITE, np.uint8)
    shown = slice(tiling.pad_before, tiling.pad_before + tiling.resized[1])
    pixels[(slice(None), shown) if tiling.transposed else shown] = np.asarray(_resized(image, tiling))
    return pixels


def _resized(image: Image.Image, tiling: Tiling) -> Image.Image:
    """Return `image` as RGB, resized and not padded.

    Pillow resizes each row, rounds, and then resizes each column. A tall image is resized in the opposite order, which
    gives the same pixels as transposing it, resizing, and transposing back.
    """
    if image.mode != "RGB":
        image = image.convert("RGB")
    width, height = tiling.resized
    if not tiling.transposed:
        return image.resize((width, height), Image.Resampling.BILINEAR)
    stretched = image.resize((image.width, width), Image.Resampling.BILINEAR)
    return stretched.resize((height, width), Image.Resampling.BILINEAR)


def cut_tiles(image: Image.Image, tiling: Tiling) -> Tensor:
    """Return uint8 [rows * cols, crop, crop, 3]: the tiles of the padded image in row order."""
    side = tiling.crop
    pixels = padded_pixels(image, tiling).reshape(tiling.rows, side, tiling.cols, side, 3)
    return torch.from_numpy(pixels.swapaxes(1, 2).copy()).view(-1, side, side, 3)


def normalised_crops(tiles: Tensor, rows: int, cols: int) -> Tensor:
    """Return float32 [1 + rows * cols, 3, crop, crop]: the global view, then the normalised tiles.

    `tiles` are those of `cut_tiles`, on any device. The work is done on that device.
    """
    side = tiles.shape[1]
    mean = tiles.new_tensor(CLIP_MEAN, dtype=torch.float32).view(3, 1, 1)
    std = tiles.new_tensor(CLIP_STD, dtype=torch.float32).view(3, 1, 1)
    pixels = (tiles.permute(0, 3, 1, 2).contiguous().to(torch.float32) / 255 - mean) / std
    whole = pixels.view(rows, cols, 3, side, side).permute(2, 0, 3, 1, 4).reshape(1, 3, rows * side, cols * side)
    view = F.interpolate(whole, size=(side, side), mode="bicubic", align_corners=False)  # [1, 3, crop, crop]
    return torch.cat([view, pixels])


def crops(image: Image.Image, tiling: Tiling) -> Tensor:
    """Return float32 [1 + rows * cols, 3, crop, crop]: the global view, then the tiles in row order."""
    return normalised_crops(cut_tiles(image, tiling), tiling.rows, tiling.cols)
