"""What the pipeline asks of its two models: a `Turn` goes in, pieces of text come out; frames go in, features come out.

`Captioner` and `FrameEncoder` are the interfaces; `vllm_captioner.py` and `encoder.py` have the models behind them.
Nothing above this module knows vLLM or torch.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from service.contract.jobs import Decoding, Usage
from workers.prompts import Dialect

CLIP_L_336 = "openai/clip-vit-large-patch14-336"
CLIP_L_THRESHOLD = 0.93

Features = npt.NDArray[np.float32]  # [frames, hidden], each of length 1


@dataclass(frozen=True)
class Turn:
    """One question to the model, its images first; `hd_num` none is the model's own default."""

    prompt: str
    images: tuple[Image.Image, ...] = ()
    hd_num: int | None = None
    max_tokens: int = 512
    decoding: Decoding = field(default_factory=Decoding)

    @property
    def image(self) -> Image.Image | None:
        """The only image, where there is one."""
        assert len(self.images) <= 1
        return self.images[0] if self.images else None

    def with_max_tokens(self, max_tokens: int) -> "Turn":
        return replace(self, max_tokens=max_tokens)


@dataclass(frozen=True)
class Piece:
    """Text to add to the answer so far."""

    text: str


@dataclass(frozen=True)
class Done:
    """The end of an answer: `stopped` by the model itself, or cut off at `max_tokens`."""

    usage: Usage
    stopped: bool


@dataclass(frozen=True)
class ModelDefaults:
    """What a checkpoint says of itself beside its weights. `keyframe_encoder`: a directory or a hub id."""

    hd_num: int | None = None
    keyframe_encoder: str = CLIP_L_336
    similarity_threshold: float = CLIP_L_THRESHOLD


class CannotWork(Exception):
    """The settings or the installation are wrong: starting again is no use."""


class Captioner(Protocol):
    """A model that answers turns, many at once."""

    context_tokens: int
    """Prompt, image and answer together."""
    defaults: ModelDefaults
    dialect: Dialect
    takes_hd_num: bool
    """Whether images are cut into crops, `hd_num` at most; else they are seen as the model's own processor has it."""

    def generate(self, turn: Turn, request_id: str) -> AsyncGenerator[Piece | Done, None]:
        """Yield the answer piece by piece, `Done` last. Closing the generator, or cancelling its task, stops the model.

        Raises EngineFailed; `alive` is false after that where the engine is gone for good.
        """
        ...

    async def prompt_tokens(self, turn: Turn) -> int:
        """Return the tokens that `turn` takes before its answer, images and chat marks included."""
        ...

    def count_tokens(self, text: str) -> int:
        """Return the tokens of `text` within a prompt."""
        ...

    @property
    def alive(self) -> bool: ...


class FrameEncoder(Protocol):
    """A model that tells how alike frames are: by the cosine of their features."""

    async def encode(self, images: Sequence[Image.Image]) -> Features:
        """Return a feature of length 1 for each RGB image, float32 [images, hidden]."""
        ...
