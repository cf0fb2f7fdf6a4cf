"""The sliding role: a window of two keyframes moves over the video, each turn says what changed.

The first keyframe is described alone. Every later turn sees the pair stacked, and reads both true times and the
differential before it: one chain, as long as the video. What it leaves to `summary.py` is the whole.
"""

from PIL import Image

from service.contract.events import Differential
from service.contract.jobs import DifferentialCaption, Keyframe
from workers import prompts
from workers.attempt import Attempt
from workers.collage import stack_pair
from workers.engine import Turn
from workers.fitting import crops_that_fit, cut_at_sentence
from workers.keyframes import KeyframeLog, read_keyframe
from workers.turns import Told, max_tokens, video_options

DEFAULT_HD_NUM = 9
DEFAULT_MAX_TOKENS = 512


async def describe(attempt: Attempt, keyframes: KeyframeLog) -> list[DifferentialCaption]:
    """Caption the keyframes one after the other as they come, from the first without a differential; return all."""
    done = list(attempt.job.differentials)
    window = [await read_keyframe(attempt, keyframes.found[done[-1].keyframe])] if done else []
    while (keyframe := await keyframes.get(len(done))) is not None:
        window = [*window[-1:], await read_keyframe(attempt, keyframe)]
        with attempt.timed("captioning"):
            turn = _turn(attempt, keyframes.found, keyframe, window, done[-1].text if done else "")
            text = await attempt.turns.run(turn, Told(keyframe.index))
        event = Differential(keyframe=keyframe.index, time_s=keyframe.time_s, text=text)
        await attempt.publisher.append(event)
        done.append(DifferentialCaption(keyframe=keyframe.index, time_s=keyframe.time_s, text=text))
    return done


def _turn(
    attempt: Attempt, found: list[Keyframe], keyframe: Keyframe, window: list[Image.Image], previous: str
) -> Turn:
    """Return the turn for `keyframe`; `window` holds its image, after that of the keyframe before it if any."""
    options, captioner = video_options(attempt.record), attempt.tools.captioner
    answer = max_tokens(options, DEFAULT_MAX_TOKENS, captioner)
    image = stack_pair(*window) if len(window) == 2 else window[0]
    hd_num = crops_that_fit(captioner, image, options.hd_num, DEFAULT_HD_NUM, answer)
    if len(window) == 1:
        return Turn(prompts.FIRST_FRAME, image, hd_num, answer, options)
    before = found[keyframe.index - 1]

    def turn(previous: str) -> Turn:
        prompt = prompts.differential(before.index, before.time_s, keyframe.time_s, previous)
        return Turn(prompt, image, hd_num, answer, options)

    room = captioner.context_tokens - answer - captioner.prompt_tokens(turn(""))
    return turn(cut_at_sentence(previous, room, captioner.count_tokens))
