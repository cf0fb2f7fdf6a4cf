"""Resizes and pads an image, and cuts it into the crops that the vision tower receives.

All sizes come from `hd_tiling.plan_tiling`. Merging the features, separators and projection are in `model.py`. The
training of the demo model uses the same functions.
"""

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from workers.xcomposer2.hd_tiling import Tiling

# CLIP's normalisation (openai/CLIP), for RGB in 0..1
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
WHITE = (255, 255, 255)


def pad_image(image: Image.Image, tiling: Tiling) -> Image.Image:
    """Return `image` as RGB, resized and padded with white to `tiling.padded_size`."""
    image = image.convert("RGB")
    if tiling.transposed:
        image = image.transpose(Image.Transpose.TRANSPOSE)
    image = image.resize(tiling.resized, Image.Resampling.BILINEAR)
    width, height = tiling.resized
    padded = Image.new("RGB", (width, tiling.pad_before + height + tiling.pad_after), WHITE)
    padded.paste(image, (0, tiling.pad_before))
    return padded.transpose(Image.Transpose.TRANSPOSE) if tiling.transposed else padded


def crops(image: Image.Image, tiling: Tiling) -> Tensor:
    """Return float32 [1 + rows * cols, 3, crop, crop]: the global view, then the tiles in row order."""
    padded = pad_image(image, tiling)
    width, height = padded.size
    raw = torch.frombuffer(bytearray(padded.tobytes()), dtype=torch.uint8).view(height, width, 3)
    pixels = raw.permute(2, 0, 1).to(torch.float32) / 255  # [3, rows * crop, cols * crop]
    mean = torch.tensor(CLIP_MEAN).view(3, 1, 1)
    std = torch.tensor(CLIP_STD).view(3, 1, 1)
    pixels = (pixels - mean) / std
    side = tiling.crop
    view = F.interpolate(pixels[None], size=(side, side), mode="bicubic", align_corners=False)  # [1, 3, crop, crop]
    tiles = pixels.view(3, tiling.rows, side, tiling.cols, side).permute(1, 3, 0, 2, 4)
    return torch.cat([view, tiles.reshape(-1, 3, side, side)])
