"""The sliding role: a window of two keyframes moves over the video, each turn says what changed.

The first keyframe is described alone. Every later turn sees the pair stacked, and reads both true times and the
differential before it: one chain, as long as the video. Where the job asks for shots, each shot is a chain of its own:
its first keyframe is described alone, and chains run at the same time. What this leaves to `summary.py` is the whole.
"""

import asyncio
from contextlib import aclosing
from dataclasses import replace
from itertools import count

from PIL import Image

from service.contract.events import Differential
from service.contract.jobs import DifferentialCaption, Keyframe
from workers.attempt import Attempt
from workers.models.engine import Turn
from workers.roles.context_budget import cut_at_sentence, with_images
from workers.roles.turns import DeltaTarget, max_tokens, video_options
from workers.video.keyframes import KeyframeLog, read_keyframe

DEFAULT_HD_NUM = 9
DEFAULT_MAX_TOKENS = 512


async def describe(attempt: Attempt, keyframes: KeyframeLog) -> list[DifferentialCaption]:
    """Caption the keyframes as they come, but for those that an earlier attempt has; return all, in order."""
    told = {differential.keyframe: differential for differential in attempt.job.differentials}
    free = asyncio.Semaphore(attempt.tools.settings.chains)
    try:
        async with asyncio.TaskGroup() as chains, aclosing(keyframes.shots()) as shots:
            async for first in shots:
                chains.create_task(_describe_shot(attempt, keyframes, first, told, free))
    except BaseExceptionGroup as errors:  # one is enough to end the job, and says why
        raise errors.exceptions[0] from None
    return [told[index] for index in sorted(told)]


async def _describe_shot(
    attempt: Attempt,
    keyframes: KeyframeLog,
    first: int,
    told: dict[int, DifferentialCaption],
    free: asyncio.Semaphore,
) -> None:
    """Caption one keyframe after the other, from the shot's first to its last, and put what is said into `told`."""
    window: list[Image.Image] = []
    async with free:
        for index in count(first):
            keyframe = await keyframes.get(index)
            if keyframe is None or keyframe.shot != keyframes.found[first].shot:
                return
            if index in told:
                continue
            if index > first and not window:
                window = [await read_keyframe(attempt, keyframes.found[index - 1])]
            window = [*window[-1:], await read_keyframe(attempt, keyframe)]
            with attempt.timed("captioning"):
                previous = told[index - 1].text if index > first else ""
                turn = await _turn(attempt, keyframes.found, keyframe, window, previous)
                text = await attempt.turns.run(turn, DeltaTarget(index))
            await attempt.publisher.append(Differential(keyframe=index, time_s=keyframe.time_s, text=text))
            told[index] = DifferentialCaption(keyframe=index, time_s=keyframe.time_s, text=text)


async def _turn(
    attempt: Attempt, found: list[Keyframe], keyframe: Keyframe, window: list[Image.Image], previous: str
) -> Turn:
    """Return the turn for `keyframe`; `window` holds its image, after that of the keyframe before it if any."""
    options, captioner = video_options(attempt.record), attempt.tools.captioner
    answer = max_tokens(options, DEFAULT_MAX_TOKENS, captioner)
    if len(window) == 1:
        turn = Turn(captioner.dialect.first_frame(keyframe.index, keyframe.time_s), (), options.hd_num, answer, options)
        return await with_images(captioner, turn, window, DEFAULT_HD_NUM)
    before = found[keyframe.index - 1]

    def prompt(previous: str) -> str:
        return captioner.dialect.differential(before.index, before.time_s, keyframe.time_s, previous)

    turn = Turn(prompt(""), (), options.hd_num, answer, options)
    turn = await with_images(captioner, turn, captioner.dialect.pair(*window), DEFAULT_HD_NUM)
    room = captioner.context_tokens - answer - await captioner.prompt_tokens(turn)
    return replace(turn, prompt=prompt(cut_at_sentence(previous, room, captioner.count_tokens)))
