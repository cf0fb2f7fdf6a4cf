"""HD tiling as pure geometry: image size -> grid of crops -> number of image tokens.

First stage of the plugin, and the only place that decides a size. `image.py` cuts images by it and
`processor.py` counts placeholder tokens by it, so the two cannot disagree. No torch, no PIL.

Source of the rules: InternLM-XComposer2-4KHD's `HD_transform` (dynamic resolution with a crop budget).
"""

import math
from dataclasses import dataclass

CLIP_CROP_PX = 336


@dataclass(frozen=True)
class Tiling:
    """How one image becomes `rows` x `cols` crops of `crop` pixels, plus one global view.

    `resized` and the paddings hold for the image as it is resized: transposed first where `transposed`
    says so, which makes every image at least as wide as tall. `rows` and `cols` are the grid of the
    final image, transposed back.
    """

    transposed: bool
    rows: int
    cols: int
    resized: tuple[int, int]  # (width, height) in pixels
    pad_before: int  # white rows on top, pixels
    pad_after: int  # white rows at the bottom, pixels
    crop: int

    @property
    def padded_size(self) -> tuple[int, int]:
        """Final (width, height) in pixels: whole crops both ways, transposed back."""
        return self.cols * self.crop, self.rows * self.crop

    def image_tokens(self, merged_side: int) -> int:
        """Tokens of this image; a crop gives `merged_side` x `merged_side` of them (12 for CLIP-L/336).

        Global view and tiles, one `plora_glb_GN` between them, one `plora_sub_GN` after each row of the
        global view and of the tiles laid back into one grid.
        """
        crops = self.rows * self.cols + 1
        return crops * merged_side**2 + 1 + (self.rows + 1) * merged_side


def plan_tiling(width: int, height: int, hd_num: int, crop: int = CLIP_CROP_PX) -> Tiling:
    """Plan the tiling of a `width` x `height` pixel image into at most `hd_num` crops.

    Raises ValueError for an empty image or `hd_num` below 1.
    """
    if width < 1 or height < 1:
        raise ValueError(f"image must have pixels, not {width}x{height}")
    if hd_num < 1:
        raise ValueError(f"hd_num must be at least 1, not {hd_num}")
    transposed = height > width
    ratio = max(width, height) / min(width, height)
    scale = 1  # crops along the long side; one always fits, for ratio >= 1
    while (scale + 1) * math.ceil((scale + 1) / ratio) <= hd_num:
        scale += 1
    resized_width = scale * crop
    resized_height = max(1, int(resized_width / ratio))  # a line one pixel thin still has a row
    across = math.ceil(resized_height / crop)
    padding = across * crop - resized_height
    return Tiling(
        transposed=transposed,
        rows=scale if transposed else across,
        cols=across if transposed else scale,
        resized=(resized_width, resized_height),
        pad_before=padding // 2,
        pad_after=padding - padding // 2,
        crop=crop,
    )
