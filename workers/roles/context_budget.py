"""Fits inputs into the model's context, so that no input, however long, causes a context error.

Images get fewer crops or pixels, a previous differential is cut at a sentence, descriptions are split into groups.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from PIL import Image

from service.contract.errors import InvalidOption
from service.contract.jobs import MAX_KEYFRAMES_LIMIT
from workers.models.engine import Captioner, Turn
from workers.prompts.style import Description

RESERVED_TEXT_TOKENS = 256
"""Kept free for the prompt and the previous differential while images are fitted."""
SCALES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15)
"""Scale factors tried in turn when the images exceed the context.

They do not help with a model that spends the same number of tokens on every image.
"""
LINE_MARGIN_TOKENS = 2
"""Added to each line's token count: tokens can merge differently when the lines are joined."""

_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])")


async def with_images(captioner: Captioner, turn: Turn, images: Sequence[Image.Image], default_hd_num: int) -> Turn:
    """Return `turn` with RGB `images`, reduced in crops or pixels until prompt and answer fit the context.

    If the job sets `hd_num`, that number of crops is used as it is. Otherwise the model's default, or
    `default_hd_num`, is reduced until it fits. Raises InvalidOption if `hd_num` is set and the model has no crops.
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
    return turn  # if even the smallest scale does not fit, `TurnRunner` refuses the turn


async def _crops_that_fit(captioner: Captioner, turn: Turn, default: int) -> int:
    if turn.hd_num is not None:
        return turn.hd_num
    for hd_num in range(captioner.defaults.hd_num or default, 1, -1):
        if await _fits(captioner, replace(turn, hd_num=hd_num)):
            return hd_num
    return 1


async def _fits(captioner: Captioner, turn: Turn) -> bool:
    """Return whether the context has space for the turn, its answer and the text that is added later."""
    tokens = await captioner.prompt_tokens(turn)
    return tokens + RESERVED_TEXT_TOKENS + turn.max_tokens <= captioner.context_tokens


def _scaled(image: Image.Image, scale: float) -> Image.Image:
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image if scale == 1 else image.resize(size, Image.Resampling.BOX)


def cut_at_sentence(text: str, max_tokens: int, count_tokens: Callable[[str], int]) -> str:
    """Return the longest prefix of `text` that ends with a sentence and has at most `max_tokens` tokens.

    If even the first sentence is too long, it is cut at a word.
    """
    if count_tokens(text) <= max_tokens:
        return text
    sentences = _longest_prefix(_SENTENCE_END.split(text), max_tokens, count_tokens)
    return sentences or _longest_prefix(text.split(" "), max_tokens, count_tokens)


def _longest_prefix(parts: list[str], max_tokens: int, count_tokens: Callable[[str], int]) -> str:
    """Return as many of `parts`, joined by spaces, as fit into `max_tokens`. Found by bisection."""
    fits, too_many = 0, len(parts) + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if count_tokens(" ".join(parts[:middle])) <= max_tokens:
            fits = middle
        else:
            too_many = middle
    return " ".join(parts[:fits])


async def grouped(
    descriptions: Sequence[Description], captioner: Captioner, answer_tokens: int
) -> list[list[Description]]:
    """Split `descriptions` into consecutive groups that each fit into one summary prompt with its answer.

    Each description is first cut to less than half of the available tokens, so that every group but the last holds at
    least two. Summarising the groups therefore at least halves their number.
    """
    empty_prompt_tokens = await captioner.prompt_tokens(Turn(captioner.prompts.summary([])))
    available = captioner.context_tokens - answer_tokens - empty_prompt_tokens
    latest_s = max((time_s for time_s, _ in descriptions), default=0.0)
    max_text_tokens = available // 2 - _line_tokens(Description(latest_s, ""), captioner)
    groups: list[list[Description]] = [[]]
    left = available
    for time_s, text in descriptions:
        await asyncio.sleep(0)  # counting all tokens can take seconds, and leases must be renewed meanwhile
        description = Description(time_s, cut_at_sentence(text, max_text_tokens, captioner.count_tokens))
        tokens = _line_tokens(description, captioner)
        if groups[-1] and tokens > left:
            groups.append([])
            left = available
        groups[-1].append(description)
        left -= tokens
    return groups


def _line_tokens(description: Description, captioner: Captioner) -> int:
    """Return how many tokens one description takes in a summary prompt, at most."""
    line = captioner.prompts.description(MAX_KEYFRAMES_LIMIT, description.time_s, description.text)
    return captioner.count_tokens(line) + LINE_MARGIN_TOKENS
