"""What the roles need from a style of prompts: `PromptStyle`, and the descriptions that a summary combines."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from PIL import Image


class Description(NamedTuple):
    """A text that describes the video at one time."""

    time_s: float
    text: str


class PromptStyle(Protocol):
    """Writes the prompt of each role. Times are in seconds; frames are counted from 0."""

    def first_frame(self, frame: int, time_s: float) -> str:
        """Return the prompt that asks for a description of a single frame."""
        ...

    def differential(self, frame: int, previous_s: float, time_s: float, previous_text: str) -> str:
        """Return the prompt that asks what changed between keyframe `frame` and the next one.

        `previous_text` is the previous differential caption.
        """
        ...

    def pair_images(self, previous: Image.Image, current: Image.Image) -> tuple[Image.Image, ...]:
        """Return the images to show with a `differential` prompt."""
        ...

    def fast(self, times_s: Sequence[float]) -> str:
        """Return the prompt that asks for the caption of a video, given one tall image of all its keyframes."""
        ...

    def summary(self, descriptions: Iterable[Description]) -> str:
        """Return the prompt that asks for one caption of all `descriptions`."""
        ...

    def description(self, number: int, time_s: float, text: str) -> str:
        """Return the line of the `summary` prompt for description `number`, counted from 1."""
        ...

    def recaption(self, prompt: str) -> str:
        """Return the prompt that asks for the dense caption of a short text-to-video prompt."""
        ...
