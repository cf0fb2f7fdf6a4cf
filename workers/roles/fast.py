"""The fast role: all keyframes in one tall image, captioned by a single model call."""

import asyncio

from service.contract.events import Caption
from service.contract.jobs import Keyframe, VideoOptions
from workers.attempt import Attempt
from workers.models.engine import Turn
from workers.roles.context_budget import with_images
from workers.roles.turn_runner import DeltaTarget, max_answer_tokens
from workers.video.collage import stack_all
from workers.video.keyframes import read_keyframe

DEFAULT_HD_NUM = 16
DEFAULT_MAX_TOKENS = 1024
MAX_KEYFRAMES_SHOWN = 16


def evenly_spaced(keyframes: list[Keyframe], count: int) -> list[Keyframe]:
    """Return `count` evenly spaced keyframes, including the first and the last, or all if there are at most `count`."""
    if len(keyframes) <= count:
        return keyframes
    return [keyframes[round(k * (len(keyframes) - 1) / (count - 1))] for k in range(count)]


async def caption(attempt: Attempt, options: VideoOptions, keyframes: list[Keyframe]) -> Caption:
    """Return the caption of the whole video."""
    captioner = attempt.context.captioner
    shown = evenly_spaced(keyframes, MAX_KEYFRAMES_SHOWN)
    image = await asyncio.to_thread(stack_all, [await read_keyframe(attempt, keyframe) for keyframe in shown])
    prompt = captioner.prompts.fast([keyframe.time_s for keyframe in shown])
    answer_tokens = max_answer_tokens(options, DEFAULT_MAX_TOKENS, captioner)
    turn = Turn(prompt, hd_num=options.hd_num, max_tokens=answer_tokens, decoding=options)
    turn = await with_images(captioner, turn, [image], DEFAULT_HD_NUM)
    with attempt.timed("captioning"):
        answer = await attempt.turn_runner.run(turn, DeltaTarget())
    return Caption(text=answer.text, finish_reason=answer.finish_reason, keyframes_seen=len(shown))
