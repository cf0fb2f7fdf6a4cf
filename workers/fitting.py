"""What fits into the model's context: no input, however long, may raise a context error.

Images get fewer crops, a previous differential is cut at a sentence, descriptions are grouped.
"""

import re
from collections.abc import Callable, Sequence

from PIL import Image

from workers import prompts
from workers.engine import Captioner, Turn

Description = tuple[float, str]
"""A time in seconds, and what is said of it."""

TEXT_ROOM_TOKENS = 256
"""Left free beside an image and its answer when the number of crops is chosen: prompt and previous differential."""
LINE_MARGIN_TOKENS = 2
"""Tokens are counted line by line; put together they may merge differently at the seams."""

_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])")


def crops_that_fit(captioner: Captioner, image: Image.Image, asked: int | None, default: int, answer: int) -> int:
    """Return `hd_num` for `image`: as asked, else the model's or `default`, lowered until there is room to answer."""
    if asked is not None:
        return asked
    for hd_num in range(captioner.defaults.hd_num or default, 1, -1):
        turn = Turn("", image=image, hd_num=hd_num)
        if captioner.prompt_tokens(turn) + TEXT_ROOM_TOKENS + answer <= captioner.context_tokens:
            return hd_num
    return 1


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


def grouped(descriptions: Sequence[Description], captioner: Captioner, answer: int) -> list[list[Description]]:
    """Cut `descriptions` into consecutive groups, each of which fits into one summary prompt beside its answer.

    Any two fit together, for each is first cut to less than half of the room: so summarising the groups always leaves
    at most half as many.
    """
    room = captioner.context_tokens - answer - captioner.prompt_tokens(Turn(prompts.summary([])))
    line = _line_tokens((max((t for t, _ in descriptions), default=0.0), ""), captioner)
    groups: list[list[Description]] = [[]]
    left = room
    for time_s, text in descriptions:
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
    line = f"Video frame 100000 at {time_s:.2f} Second(s) description: {text}\n"
    return captioner.count_tokens(line) + LINE_MARGIN_TOKENS
