"""A scripted model and a scripted frame encoder, for tests of timing, resuming and failures.

`FakeCaptioner` returns queued answers, and numbered ones ("answer 3") when the queue is empty. A token is a word.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

import numpy as np
from PIL import Image

from service.contract.errors import EngineFailed
from service.contract.jobs import Usage
from workers.models.engine import Done, Features, ModelDefaults, Piece, Turn
from workers.prompts.style import PromptStyle
from workers.prompts.trained import TRAINED_PROMPTS

IMAGE_TOKENS = 50
Answer = str | Exception | Callable[[Turn], str]


class FakeCaptioner:
    """`answers`: the next answers, or exceptions to raise. `delay_s`: pause before each word."""

    def __init__(self, answers: Sequence[Answer] = (), *, delay_s: float = 0.0, context_tokens: int = 4096) -> None:
        self.answers = list(answers)
        self.delay_s = delay_s
        self.context_tokens = context_tokens
        self.defaults = ModelDefaults()
        self.prompts: PromptStyle = TRAINED_PROMPTS
        self.takes_hd_num = True
        self.alive = True
        self.stalled = False
        self.turns: list[Turn] = []
        self.running: set[str] = set()
        self.most_running = 0
        self.aborted: list[str] = []
        self.on_turn: Callable[[int], None] = lambda _: None

    async def generate(self, turn: Turn, request_id: str) -> AsyncGenerator[Piece | Done, None]:
        tokens = await self.prompt_tokens(turn) + turn.max_tokens
        assert tokens <= self.context_tokens, f"context error: {tokens} tokens"
        self.turns.append(turn)
        self.running.add(request_id)
        self.most_running = max(self.most_running, len(self.running))
        self.on_turn(len(self.turns))
        answer = self.answers.pop(0) if self.answers else f"answer {len(self.turns)}"
        if isinstance(answer, Exception):
            self.alive = not isinstance(answer, EngineFailed)
            self.running.discard(request_id)
            raise answer
        all_words = (answer if isinstance(answer, str) else answer(turn)).split(" ")
        words = all_words[: turn.max_tokens]
        try:
            for k, word in enumerate(words):
                await asyncio.sleep(self.delay_s)
                yield Piece(f" {word}" if k else word)
            image_tokens = IMAGE_TOKENS * len(turn.images)
            usage = Usage(prompt_tokens=100, image_tokens=image_tokens, completion_tokens=len(words))
            yield Done(usage, finish_reason="length" if len(words) < len(all_words) else "stop")
        except (asyncio.CancelledError, GeneratorExit):
            self.aborted.append(request_id)
            raise
        finally:
            self.running.discard(request_id)

    async def prompt_tokens(self, turn: Turn) -> int:
        return self.count_tokens(turn.prompt) + 8 + IMAGE_TOKENS * (turn.hd_num or 1) * len(turn.images)

    def count_tokens(self, text: str) -> int:
        return len(text.split())


class FakeEncoder:
    """Encodes a frame as its twelve pixels after shrinking it to 4 x 3."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    async def encode(self, images: Sequence[Image.Image]) -> Features:
        self.batches.append(len(images))
        shrunk = [image.resize((4, 3), Image.Resampling.BOX) for image in images]
        pixels = np.stack([np.asarray(image, np.float32).ravel() - 127.5 for image in shrunk])
        features: Features = pixels / np.linalg.norm(pixels, axis=1, keepdims=True)
        return features
