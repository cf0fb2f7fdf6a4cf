"""Keyframes -> the one image a captioning turn looks at.

Geometry of the ShareCaptioner-Video reference scripts: a pair is stacked vertically with a white gap; for the fast mode
all frames stand below each other, numbered in a margin.
"""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

PAIR_GAP_PX = 50
WHITE = (255, 255, 255)
BLACK = (0, 0, 0)

BORDER_PX = 10
FRAME_GAP_PX = 20
LINE_PX = 2
LEAST_MARGIN_PX = 100


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


def stack_all(frames: Sequence[Image.Image]) -> Image.Image:
    """Return all RGB frames below each other on white, each with `<IMAGE k>` (k from 0) in a margin on its left.

    The margin is a quarter of the widest frame and at least 100 px, its font a fifth of it. 20 px lie between frames,
    with a black line of 2 px in the middle; 10 px above the first, and as in the reference 30 px below the last and
    20 px on the right.
    """
    widest = max(frame.width for frame in frames)
    margin = max(widest // 4, LEAST_MARGIN_PX)
    height = sum(frame.height + FRAME_GAP_PX for frame in frames) + 2 * BORDER_PX
    stacked = Image.new("RGB", (margin + widest + 2 * BORDER_PX, height), WHITE)
    draw = ImageDraw.Draw(stacked)
    font = ImageFont.load_default(margin // 5)
    top = BORDER_PX
    for k, frame in enumerate(frames):
        stacked.paste(frame, (margin, top))
        draw.text((0, top + frame.height // 2), f"<IMAGE {k}>", font=font, fill=BLACK)
        top += frame.height + FRAME_GAP_PX
        if k + 1 < len(frames):
            middle = top - FRAME_GAP_PX // 2
            draw.rectangle((0, middle - LINE_PX // 2, stacked.width - 1, middle + LINE_PX // 2 - 1), fill=BLACK)
    return stacked
