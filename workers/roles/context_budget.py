"""What fits into the model's context: no input, however long, may raise a context error.

Images get fewer crops or pixels, a previous differential is cut at a sentence, descriptions are grouped.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from PIL import Image

from service.contract.errors import InvalidOption
from workers.models.engine import Captioner, Turn
from workers.prompts import Description

TEXT_ROOM_TOKENS = 256
"""Left free beside images and their answer when these are fitted: prompt and previous differential."""
SCALES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15)
"""Of the sides of images that do not fit; a model with as many tokens for every image gains nothing by it."""
LINE_MARGIN_TOKENS = 2
"""Tokens are counted line by line; put together they may merge differently at the seams."""

_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])")


async def with_images(captioner: Captioner, turn: Turn, images: Sequence[Image.Image], default_hd_num: int) -> Turn:
    """Return `turn` with RGB `images`, in as many crops or pixels as leave room for its answer.

    `turn.hd_num` is what the job asks for: crops are as asked, else the model's or `default_hd_num`, and fewer where
    they do not fit. Raises InvalidOption where crops are asked of a model that has none.
    """
    turn = replace(turn, images=tuple(images))
    if captioner.takes_hd_num:
        return replace(turn, hd_num=await _crops_that_fit(captioner, turn, default_hd_num))
    if turn.hd_num is not None:
        raise InvalidOption("This server's model does not cut images into crops: leave `hd_num` out.")
    for scale in SCALES:
        turn = replace(turn, images=tuple(_scaled(image, scale) for image in images))
        if await _fits(captioner, turn):
            break
    return turn  # what does not fit even so is refused when it is asked


async def _crops_that_fit(captioner: Captioner, turn: Turn, default: int) -> int:
    if turn.hd_num is not None:
        return turn.hd_num
    for hd_num in range(captioner.defaults.hd_num or default, 1, -1):
        if await _fits(captioner, replace(turn, hd_num=hd_num)):
            return hd_num
    return 1


async def _fits(captioner: Captioner, turn: Turn) -> bool:
    """Whether the images, the answer, and the text that is still to come have room."""
    tokens = await captioner.prompt_tokens(turn)
    return tokens + TEXT_ROOM_TOKENS + turn.max_tokens <= captioner.context_tokens


def _scaled(image: Image.Image, scale: float) -> Image.Image:
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image if scale == 1 else image.resize(size, Image.Resampling.BOX)


def cut_at_sentence(text: str, max_tokens: int, count_tokens: Callable[[str], int]) -> str:
    """Return the longest beginning of `text` that ends with a sentence and has at most `max_tokens` tokens.

    A first sentence that is too long itself is cut at a word.
    """
    if count_tokens(text) <= max_tokens:
        return text
    return _longest(_SENTENCE_END.split(text), max_tokens, count_tokens) or _longest(
        text.split(" "), max_tokens, count_tokens
    )


def _longest(parts: list[str], max_tokens: int, count_tokens: Callable[[str], int]) -> str:
    """Return as many of `parts` as fit, joined by spaces; found by bisection."""
    fits, too_many = 0, len(parts) + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if count_tokens(" ".join(parts[:middle])) <= max_tokens:
            fits = middle
        else:
            too_many = middle
    return " ".join(parts[:fits])


async def grouped(descriptions: Sequence[Description], captioner: Captioner, answer: int) -> list[list[Description]]:
    """Cut `descriptions` into consecutive groups, each of which fits into one summary prompt beside its answer.

    Any two fit together, for each is first cut to less than half of the room: so summarising the groups always leaves
    at most half as many.
    """
    room = captioner.context_tokens - answer - await captioner.prompt_tokens(Turn(captioner.prompts.summary([])))
    line = _line_tokens((max((t for t, _ in descriptions), default=0.0), ""), captioner)
    groups: list[list[Description]] = [[]]
    left = room
    for time_s, text in descriptions:
        await asyncio.sleep(0)  # to count them all takes seconds, and leases are renewed meanwhile
        description = (time_s, cut_at_sentence(text, room // 2 - line, captioner.count_tokens))
        cost = _line_tokens(description, captioner)
        if groups[-1] and cost > left:
            groups.append([])
            left = room
        groups[-1].append(description)
        left -= cost
    return groups


def _line_tokens(description: Description, captioner: Captioner) -> int:
    """Return what one description costs within a summary prompt."""
    time_s, text = description
    line = captioner.prompts.description(100_000, time_s, text)
    return captioner.count_tokens(line) + LINE_MARGIN_TOKENS
