"""The fast role: all keyframes in one tall image, one call of the model."""

import asyncio

from service.contract.jobs import Keyframe
from workers.attempt import Attempt
from workers.models.engine import Turn
from workers.roles.context_budget import with_images
from workers.roles.turns import DeltaTarget, max_tokens, video_options
from workers.video.collage import stack_all
from workers.video.keyframes import read_keyframe

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
    prompt = captioner.dialect.fast([keyframe.time_s for keyframe in seen])
    turn = Turn(prompt, (), options.hd_num, max_tokens(options, DEFAULT_MAX_TOKENS, captioner), options)
    turn = await with_images(captioner, turn, [image], DEFAULT_HD_NUM)
    with attempt.timed("captioning"):
        text = await attempt.turns.run(turn, DeltaTarget())
    return text, len(seen)
