"""The trained prompts of ShareCaptioner-Video: protocol constants, misspellings included.

The published checkpoint was fine-tuned on exactly these sentences (reference batch scripts of the ShareGPT4Video
release). Changing one letter gives the model a prompt that it never saw in training.
"""

from collections.abc import Iterable, Sequence

from PIL import Image

from workers.prompts.style import Description
from workers.video.collage import stack_pair


class TrainedPrompts:
    """`PromptStyle` of the ShareCaptioner-Video family. A pair of keyframes is stacked into one image."""

    FIRST_FRAME = "This is the first frame of a video, describe it in detail."
    FAST = "Here are a few key frames of a video, discribe this video in detail."

    def first_frame(self, frame: int, time_s: float) -> str:
        return self.FIRST_FRAME

    def differential(self, frame: int, previous_s: float, time_s: float, previous_text: str) -> str:
        return (
            f"Here are the Video frame {frame} at {previous_s:.2f} Second(s) and Video frame {frame + 1} "
            f"at {time_s:.2f} Second(s) of a video, describe what happend between them. "
            f"What happend before is: {previous_text}"
        )

    def pair_images(self, previous: Image.Image, current: Image.Image) -> tuple[Image.Image, ...]:
        return (stack_pair(previous, current),)

    def fast(self, times_s: Sequence[float]) -> str:
        return self.FAST

    def summary(self, descriptions: Iterable[Description]) -> str:
        lines = (self.description(k, time_s, text) for k, (time_s, text) in enumerate(descriptions, start=1))
        return "Summarize the following per frame descriptions:\n" + "".join(lines)

    def description(self, number: int, time_s: float, text: str) -> str:
        return f"Video frame {number} at {time_s:.2f} Second(s) description: {text}\n"

    def recaption(self, prompt: str) -> str:
        return f"Translate this brief generation prompt into a detailed caption: {prompt}"


TRAINED_PROMPTS = TrainedPrompts()
