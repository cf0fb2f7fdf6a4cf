"""The fast role: all keyframes in one tall image, one call of the model."""

import asyncio

from service.contract.jobs import Keyframe
from workers import prompts
from workers.attempt import Attempt
from workers.collage import stack_all
from workers.engine import Turn
from workers.fitting import crops_that_fit
from workers.keyframes import read_keyframe
from workers.turns import Told, max_tokens, video_options

DEFAULT_HD_NUM = 16
DEFAULT_MAX_TOKENS = 1024
MOST_SEEN = 16


def evenly(keyframes: list[Keyframe], count: int) -> list[Keyframe]:
    """Return `count` of the keyframes, the first and the last among them, evenly spread; all if there are no more."""
    if len(keyframes) <= count:
        return keyframes
    return [keyframes[round(k * (len(keyframes) - 1) / (count - 1))] for k in range(count)]


async def caption(attempt: Attempt, keyframes: list[Keyframe]) -> tuple[str, int]:
    """Return the video's caption and how many keyframes the model saw for it."""
    options, captioner = video_options(attempt.record), attempt.tools.captioner
    seen = evenly(keyframes, MOST_SEEN)
    images = [await read_keyframe(attempt, keyframe) for keyframe in seen]
    image = await asyncio.to_thread(stack_all, images)
    answer = max_tokens(options, DEFAULT_MAX_TOKENS, captioner)
    hd_num = crops_that_fit(captioner, image, options.hd_num, DEFAULT_HD_NUM, answer)
    with attempt.timed("captioning"):
        text = await attempt.turns.run(Turn(prompts.FAST, image, hd_num, answer, options), Told())
    return text, len(seen)
