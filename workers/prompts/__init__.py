"""How the four roles are put to a family of models: what is asked, and how two keyframes are shown.

`trained` has the sentences that ShareCaptioner-Video was trained on,
`hierarchical` asks any other chat model at length.
The roles speak through a `Dialect` alone; the captioner has it.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from PIL import Image

Description = tuple[float, str]
"""A time in seconds, and what is said of it."""


class Dialect(Protocol):
    """Times are seconds; frames are counted from 0."""

    def first_frame(self, frame: int, time_s: float) -> str:
        """Ask for a description of one frame, shown alone."""
        ...

    def differential(self, frame: int, previous_s: float, time_s: float, previous_text: str) -> str:
        """Ask what changed between keyframe `frame` and the next one; `previous_text` is the answer before."""
        ...

    def pair(self, previous: Image.Image, current: Image.Image) -> tuple[Image.Image, ...]:
        """Return the pictures that are shown with `differential`."""
        ...

    def fast(self, times_s: Sequence[float]) -> str:
        """Ask for the caption of a video from its keyframes in one tall picture."""
        ...

    def summary(self, descriptions: Iterable[Description]) -> str:
        """Ask for one caption of the descriptions."""
        ...

    def description(self, number: int, time_s: float, text: str) -> str:
        """Return the line of `summary` for its `number`-th description, counted from 1."""
        ...

    def recaption(self, prompt: str) -> str:
        """Ask for the dense caption of a short text-to-video prompt."""
        ...
