"""The sliding role: describes the first keyframe, then for each later one what changed since the one before it.

Each turn sees a window of two keyframes and reads both times and the previous differential caption, so the captions
form one chain. If the job is `parallel`, each shot is a chain of its own that starts with a description of its first
keyframe, and the chains run concurrently. `summary.py` then combines the differentials into the caption.
"""

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from itertools import count

from PIL import Image

from service.contract.events import Differential
from service.contract.jobs import DifferentialCaption, Keyframe, VideoOptions
from workers.attempt import Attempt
from workers.models.engine import Turn
from workers.roles.context_budget import cut_at_sentence, with_images
from workers.roles.turn_runner import DeltaTarget, max_answer_tokens
from workers.video.keyframe_log import KeyframeLog
from workers.video.keyframes import read_keyframe

DEFAULT_HD_NUM = 9
DEFAULT_MAX_TOKENS = 512


async def describe(attempt: Attempt, options: VideoOptions, keyframes: KeyframeLog) -> list[DifferentialCaption]:
    """Caption keyframes as they are selected, skipping those that an earlier attempt captioned; return all in order."""
    captions = {differential.keyframe: differential for differential in attempt.job.differentials}
    chains = _Chains(attempt, options, keyframes, captions, asyncio.Semaphore(attempt.context.settings.chains))
    try:
        async with asyncio.TaskGroup() as tasks, aclosing(keyframes.shots()) as shots:
            async for first in shots:
                tasks.create_task(chains.describe_shot(first))
    except BaseExceptionGroup as errors:  # the first error ends the job and names the cause
        raise errors.exceptions[0] from None
    return [captions[index] for index in sorted(captions)]


@dataclass
class _Chains:
    """The chains of one job. `captions` holds the finished differentials by keyframe index; `slots` limits chains."""

    attempt: Attempt
    options: VideoOptions
    keyframes: KeyframeLog
    captions: dict[int, DifferentialCaption]
    slots: asyncio.Semaphore

    async def describe_shot(self, first: int) -> None:
        """Caption the keyframes of the shot that starts with keyframe `first`, one after the other."""
        async with self.slots:
            window = _Window(self.attempt)
            for index in count(first):
                keyframe = await self.keyframes.get(index)
                if keyframe is None or keyframe.shot != self.keyframes.entries[first].shot:
                    return
                if index in self.captions:
                    continue
                previous = self.keyframes.entries[index - 1] if index > first else None
                await self._describe(keyframe, previous, await window.move(previous, keyframe))

    async def _describe(self, keyframe: Keyframe, previous: Keyframe | None, images: list[Image.Image]) -> None:
        """Caption one keyframe and add the caption to `captions`. It is published while the next turn runs."""
        with self.attempt.timed("captioning"):
            turn = await self._turn(keyframe, previous, images)
            answer = await self.attempt.turn_runner.run(turn, DeltaTarget(keyframe.index))
        caption = DifferentialCaption(
            keyframe=keyframe.index, time_s=keyframe.time_s, text=answer.text, finish_reason=answer.finish_reason
        )
        self.attempt.events.submit(Differential(**caption.model_dump()))
        self.captions[keyframe.index] = caption

    async def _turn(self, keyframe: Keyframe, previous: Keyframe | None, images: list[Image.Image]) -> Turn:
        """Return the turn that captions `keyframe`. `images` holds the image of `previous`, if any, and its own."""
        captioner = self.attempt.context.captioner
        max_tokens = max_answer_tokens(self.options, DEFAULT_MAX_TOKENS, captioner)
        turn = Turn("", hd_num=self.options.hd_num, max_tokens=max_tokens, decoding=self.options)
        if previous is None:
            turn = replace(turn, prompt=captioner.prompts.first_frame(keyframe.index, keyframe.time_s))
            return await with_images(captioner, turn, images, DEFAULT_HD_NUM)

        def prompt(previous_text: str) -> str:
            return captioner.prompts.differential(previous.index, previous.time_s, keyframe.time_s, previous_text)

        turn = replace(turn, prompt=prompt(""))
        turn = await with_images(captioner, turn, captioner.prompts.pair_images(*images), DEFAULT_HD_NUM)
        free_tokens = captioner.context_tokens - max_tokens - await captioner.prompt_tokens(turn)
        previous_text = self.captions[previous.index].text
        return replace(turn, prompt=prompt(cut_at_sentence(previous_text, free_tokens, captioner.count_tokens)))


@dataclass
class _Window:
    """Images of the last keyframes that were captioned: at most two, so that each is read only once."""

    attempt: Attempt
    images: list[Image.Image] = field(default_factory=list)

    async def move(self, previous: Keyframe | None, keyframe: Keyframe) -> list[Image.Image]:
        """Return the images of `previous`, if any, and of `keyframe`."""
        if previous is not None and not self.images:  # an earlier attempt captioned the start of the shot
            self.images = [await read_keyframe(self.attempt, previous)]
        self.images = [*self.images[-1:], await read_keyframe(self.attempt, keyframe)]
        return self.images
