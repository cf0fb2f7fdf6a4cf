"""The summary role: combines differential captions into one caption of a whole video or of a clip.

If they do not fit into one prompt, consecutive groups are summarised first, then the summaries of the groups, and so
on until one prompt is enough.
"""

import asyncio
from collections.abc import Sequence

from service.contract.errors import InvalidOption, NotFound
from service.contract.events import Caption
from service.contract.jobs import ClipOptions, DifferentialCaption
from workers.attempt import Attempt
from workers.models.engine import Turn
from workers.prompts.style import Description
from workers.roles.context_budget import grouped
from workers.roles.turn_runner import Answer, DeltaTarget, max_answer_tokens

DEFAULT_MAX_TOKENS = 1024


async def summarise(attempt: Attempt, differentials: Sequence[DifferentialCaption]) -> Caption:
    """Return the caption that the model writes from the differentials. Only the final summary is streamed."""
    options, captioner = attempt.record.options, attempt.context.captioner
    max_tokens = max_answer_tokens(options, DEFAULT_MAX_TOKENS, captioner)

    def turn(group: Sequence[Description]) -> Turn:
        return Turn(captioner.prompts.summary(group), max_tokens=max_tokens, decoding=options)

    with attempt.timed("summary"):
        descriptions = [Description(d.time_s, d.text) for d in differentials]
        while len(groups := await grouped(descriptions, captioner, max_tokens)) > 1:
            summaries = await _run_concurrently(attempt, [turn(group) for group in groups])
            times_s = [first.time_s for first, *_ in groups]
            descriptions = [Description(time_s, a.text) for time_s, a in zip(times_s, summaries, strict=True)]
        answer = await attempt.turn_runner.run(turn(groups[0]), DeltaTarget())
    return Caption(text=answer.text, finish_reason=answer.finish_reason)


async def _run_concurrently(attempt: Attempt, turns: Sequence[Turn]) -> list[Answer]:
    """Return the answers to all turns. If one fails, the others are cancelled."""
    tasks = [asyncio.create_task(attempt.turn_runner.run(turn, None)) for turn in turns]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def caption_clip(attempt: Attempt, options: ClipOptions) -> Caption:
    """Return the caption of a clip, from the differentials that its parent job has so far. No frame is read.

    Raises NotFound if the parent job does not exist, InvalidOption if it has no differential for the clip.
    """
    parent = await attempt.context.find_job(attempt.record.parent or "")
    if parent is None:
        raise NotFound("The job that this clip belongs to no longer exists.")
    differentials = within(parent.differentials, options.start_s, options.end_s)
    if not differentials:
        raise InvalidOption("This part of the video has no differential caption (yet).")
    return await summarise(attempt, differentials)


def within(differentials: Sequence[DifferentialCaption], start_s: float, end_s: float) -> list[DifferentialCaption]:
    """Return the differentials in `[start_s, end_s]`, preceded by the latest one at or before `start_s`."""
    before = [d for d in differentials if d.time_s <= start_s]
    return before[-1:] + [d for d in differentials if start_s < d.time_s <= end_s]
