"""Keyframes -> the one image a captioning turn looks at.

Geometry of the ShareCaptioner-Video reference scripts: a pair is stacked vertically with a white gap.
"""

from PIL import Image

PAIR_GAP_PX = 50
WHITE = (255, 255, 255)


def stack_pair(previous: Image.Image, current: Image.Image) -> Image.Image:
    """Return both RGB frames in one image, `previous` on top, `PAIR_GAP_PX` of white between them.

    Frames of one video have one size; where they do not, `current` is scaled to the width of `previous`.
    """
    if current.width != previous.width:
        height = max(1, round(current.height * previous.width / current.width))
        current = current.resize((previous.width, height), Image.Resampling.BILINEAR)
    stacked = Image.new("RGB", (previous.width, previous.height + PAIR_GAP_PX + current.height), WHITE)
    stacked.paste(previous, (0, 0))
    stacked.paste(current, (0, previous.height + PAIR_GAP_PX))
    return stacked
