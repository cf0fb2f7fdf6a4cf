"""The summary role: differentials with their times -> one caption, of a whole video or of a clip of it.

Where they do not fit into one prompt, consecutive groups that do are summarised first, then the groups' summaries in
the same way, as often as needed.
"""

import asyncio
from collections.abc import Sequence

from service.contract.errors import InvalidOption, NotFound
from service.contract.jobs import ClipOptions, DifferentialCaption
from workers.attempt import Attempt
from workers.models.engine import Turn
from workers.prompts import Description
from workers.roles.context_budget import grouped
from workers.roles.turns import DeltaTarget, max_tokens

DEFAULT_MAX_TOKENS = 1024


async def summarise(attempt: Attempt, differentials: Sequence[DifferentialCaption]) -> str:
    """Return the caption that the model makes of the differentials; only its own text goes out as deltas."""
    options, captioner = attempt.record.options, attempt.tools.captioner
    answer = max_tokens(options, DEFAULT_MAX_TOKENS, captioner)

    def turn(group: Sequence[Description]) -> Turn:
        return Turn(captioner.dialect.summary(group), max_tokens=answer, decoding=options)

    with attempt.timed("summary"):
        descriptions: list[Description] = [(d.time_s, d.text) for d in differentials]
        while len(groups := await grouped(descriptions, captioner, answer)) > 1:
            texts = await _together(attempt, [turn(group) for group in groups])
            descriptions = [(group[0][0], text) for group, text in zip(groups, texts, strict=True)]
        return await attempt.turns.run(turn(groups[0]), DeltaTarget())


async def _together(attempt: Attempt, turns: list[Turn]) -> list[str]:
    """Return the answers to all `turns`, asked at the same time."""
    tasks = [asyncio.create_task(attempt.turns.run(turn, None)) for turn in turns]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def caption_clip(attempt: Attempt) -> str:
    """Return the caption of a clip from what is stored of its video's job so far. No frame is read.

    Raises NotFound where that job is gone, InvalidOption where it has no differential for the clip.
    """
    options = attempt.record.options
    assert isinstance(options, ClipOptions)
    parent = await attempt.tools.store.job(attempt.record.parent or "")
    if parent is None:
        raise NotFound("The job that this clip belongs to is not there any more.")
    differentials = within(parent.differentials, options.start_s, options.end_s)
    if not differentials:
        raise InvalidOption("No differential caption of this part of the video is there (yet).")
    return await summarise(attempt, differentials)


def within(differentials: Sequence[DifferentialCaption], start_s: float, end_s: float) -> list[DifferentialCaption]:
    """Return the differentials whose time lies in `[start_s, end_s]`, with the one in force at `start_s` first."""
    before = [d for d in differentials if d.time_s <= start_s]
    return before[-1:] + [d for d in differentials if start_s < d.time_s <= end_s]
