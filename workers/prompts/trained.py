"""The trained prompts of ShareCaptioner-Video, with a pair of keyframes stacked into one picture."""

from collections.abc import Iterable, Sequence

from PIL import Image

from workers.prompts import Description
from workers.prompts import trained_texts as prompts
from workers.video.collage import stack_pair


class Trained:
    """`Dialect` of the ShareCaptioner-Video family."""

    def first_frame(self, frame: int, time_s: float) -> str:
        return prompts.FIRST_FRAME

    def differential(self, frame: int, previous_s: float, time_s: float, previous_text: str) -> str:
        return prompts.differential(frame, previous_s, time_s, previous_text)

    def pair(self, previous: Image.Image, current: Image.Image) -> tuple[Image.Image, ...]:
        return (stack_pair(previous, current),)

    def fast(self, times_s: Sequence[float]) -> str:
        return prompts.FAST

    def summary(self, descriptions: Iterable[Description]) -> str:
        return prompts.summary(descriptions)

    def description(self, number: int, time_s: float, text: str) -> str:
        return prompts.description(number, time_s, text)

    def recaption(self, prompt: str) -> str:
        return prompts.recaption(prompt)
