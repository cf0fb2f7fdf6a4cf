"""The interfaces of the two models: `Captioner` turns a `Turn` into text, `FrameEncoder` turns frames into features.

`vllm_captioner.py` and `video/encoder.py` implement them. `TurnRenderer` and `OfflineTurns` are implemented by each
model family (`families.py`). This module imports neither vLLM nor torch.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from service.contract.jobs import Decoding, FinishReason, Usage
from workers.prompts.style import PromptStyle

CLIP_L_336 = "openai/clip-vit-large-patch14-336"
CLIP_L_THRESHOLD = 0.93

Features = npt.NDArray[np.float32]  # [frames, hidden], each row has length 1


@dataclass(frozen=True)
class Turn:
    """One question to the model. The images come before the text; `hd_num=None` means the model's default.

    A turn that is submitted less than `patience_s` later, and has no patience itself, is answered first.
    """

    prompt: str
    images: tuple[Image.Image, ...] = ()
    hd_num: int | None = None
    max_tokens: int = 512
    decoding: Decoding = field(default_factory=Decoding)
    patience_s: float = 0.0

    @property
    def image(self) -> Image.Image | None:
        """The image of a turn that has at most one."""
        assert len(self.images) <= 1
        return self.images[0] if self.images else None

    def with_max_tokens(self, max_tokens: int) -> "Turn":
        return replace(self, max_tokens=max_tokens)

    def with_patience(self, patience_s: float) -> "Turn":
        return replace(self, patience_s=patience_s)


@dataclass(frozen=True)
class Piece:
    """Text to append to the answer."""

    text: str


@dataclass(frozen=True)
class Done:
    """The end of an answer. `finish_reason` is "length" if the answer was cut off at `max_tokens`."""

    usage: Usage
    finish_reason: FinishReason


@dataclass(frozen=True)
class ModelDefaults:
    """What a checkpoint declares in its config.json. `keyframe_encoder` is a directory or a hub id.

    `demonstration` says what a demonstration model knows and what it cannot do.
    """

    hd_num: int | None = None
    keyframe_encoder: str = CLIP_L_336
    similarity_threshold: float = CLIP_L_THRESHOLD
    demonstration: str = ""


class CannotWork(Exception):
    """The settings or the installation are wrong; a restart would not help."""


class Captioner(Protocol):
    """A model that answers turns, many concurrently."""

    context_tokens: int
    """Context length: prompt, images and answer together."""
    defaults: ModelDefaults
    prompts: PromptStyle
    takes_hd_num: bool
    """Whether the model cuts an image into at most `hd_num` crops. If not, its own processor decides the resolution."""

    def generate(self, turn: Turn, request_id: str) -> AsyncGenerator[Piece | Done, None]:
        """Yield the answer in pieces, then `Done`. Closing the generator or cancelling its task stops the model.

        Raises EngineFailed. `alive` is then False if the engine cannot answer any more.
        """
        ...

    async def prompt_tokens(self, turn: Turn) -> int:
        """Return the number of prompt tokens of `turn`, including images and special tokens."""
        ...

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of `text` within a prompt."""
        ...

    @property
    def alive(self) -> bool: ...

    @property
    def stalled(self) -> bool:
        """Whether the engine was killed because it hung. Its jobs then get a stall instead of a strike."""
        ...


class TurnRenderer(Protocol):
    """Converts turns to engine input, for one model family."""

    takes_hd_num: bool

    @property
    def stop_ids(self) -> Sequence[int]:
        """Token ids that end an answer, in addition to those that vLLM knows."""
        ...

    def count_tokens(self, text: str) -> int: ...

    async def prompt_tokens(self, turn: Turn) -> int: ...

    async def render(self, turn: Turn) -> Any:
        """Return vLLM's `EngineInput`: token ids and processed images."""
        ...


class OfflineTurns(Protocol):
    """Converts turns to prompts for `vllm.LLM`, and answers back to text; used by `sharecap generate`."""

    context_tokens: int
    image_token_id: int

    @property
    def stop_ids(self) -> Sequence[int]: ...

    def prompt_tokens(self, turn: Turn) -> int: ...

    def prompt(self, turn: Turn) -> Any:
        """Return vLLM's `TokensPrompt`, with the image not yet processed."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str: ...


class FrameEncoder(Protocol):
    """A model that measures how similar frames are, by the cosine of their features."""

    async def encode(self, images: Sequence[Image.Image]) -> Features:
        """Return one feature of length 1 for each RGB image, float32 [images, hidden]."""
        ...
