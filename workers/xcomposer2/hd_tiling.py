"""HD tiling as pure geometry: image size -> grid of crops -> number of image tokens.

This is the only module that decides sizes. `image.py` cuts images and `processor.py` counts placeholder tokens with
it, so the two always agree. It imports neither torch nor PIL.

Source of the rules: InternLM-XComposer2-4KHD's `HD_transform` (dynamic resolution with a crop budget).
"""

import math
from dataclasses import dataclass

CLIP_CROP_PX = 336


@dataclass(frozen=True)
class Tiling:
    """How one image is cut into `rows` x `cols` crops of `crop` pixels, plus one global view.

    If `transposed`, the image is transposed before it is resized, so that it is at least as wide as tall, and
    transposed back at the end. `resized` and the paddings describe the transposed image; `rows` and `cols` describe the
    final one.
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
        """Final (width, height) in pixels, transposed back; both are multiples of `crop`."""
        return self.cols * self.crop, self.rows * self.crop

    def image_tokens(self, merged_side: int) -> int:
        """Return the number of tokens of this image. A crop has `merged_side`² tokens, 12 x 12 for CLIP-L/336."""
        return grid_tokens(self.rows, self.cols, merged_side)


def grid_tokens(rows: int, cols: int, merged_side: int) -> int:
    """Return the number of tokens of an image with `rows` x `cols` tiles.

    The sequence is: the global view, one `plora_glb_GN`, the tiles in one grid. One `plora_sub_GN` follows each row of
    the global view and of the grid.
    """
    return (rows * cols + 1) * merged_side**2 + 1 + (rows + 1) * merged_side


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
    scale = 1  # crops along the long side; one always fits because ratio >= 1
    while (scale + 1) * math.ceil((scale + 1) / ratio) <= hd_num:
        scale += 1
    resized_width = scale * crop
    resized_height = max(1, int(resized_width / ratio))  # an image one pixel thin still has a row
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
