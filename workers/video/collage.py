"""Combines keyframes into the one image of a captioning turn.

The geometry is that of the ShareCaptioner-Video reference scripts. A pair is stacked vertically with a white gap. For
the fast mode, all frames are stacked and numbered in a margin.
"""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

PAIR_GAP_PX = 50
WHITE = (255, 255, 255)
BLACK = (0, 0, 0)

BORDER_PX = 10
FRAME_GAP_PX = 20
LINE_PX = 2
MIN_MARGIN_PX = 100


def stack_pair(previous: Image.Image, current: Image.Image) -> Image.Image:
    """Return both RGB frames in one image: `previous` on top, then `PAIR_GAP_PX` of white, then `current`.

    If the widths differ, `current` is scaled to the width of `previous`.
    """
    if current.width != previous.width:
        height = max(1, round(current.height * previous.width / current.width))
        current = current.resize((previous.width, height), Image.Resampling.BILINEAR)
    stacked = Image.new("RGB", (previous.width, previous.height + PAIR_GAP_PX + current.height), WHITE)
    stacked.paste(previous, (0, 0))
    stacked.paste(current, (0, previous.height + PAIR_GAP_PX))
    return stacked


def label_margin_px(widest_px: int) -> int:
    """Return the width of the margin beside frames of at most this width."""
    return max(widest_px // 4, MIN_MARGIN_PX)


def stack_all(frames: Sequence[Image.Image]) -> Image.Image:
    """Return all RGB frames stacked on white, each with the label `<IMAGE k>` (k from 0) in a margin on its left.

    The margin is a quarter of the widest frame, at least 100 px; the font size is a fifth of the margin. Frames are
    20 px apart, with a black line of 2 px in the middle. As in the reference, there are 10 px above the first frame,
    30 px below the last and 20 px on the right.
    """
    widest = max(frame.width for frame in frames)
    margin = label_margin_px(widest)
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
