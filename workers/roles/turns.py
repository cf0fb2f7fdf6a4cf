"""One turn of the model after the other: its text goes out as deltas while it is generated, its tokens are added up.

The four roles speak to the model through this alone.
"""

import asyncio
from contextlib import aclosing
from dataclasses import dataclass

from service.contract.errors import InvalidOption
from service.contract.events import Delta
from service.contract.jobs import Decoding, Record, Usage, VideoOptions
from workers.models.engine import Captioner, Done, Piece, Turn
from workers.publisher import Publisher

DELTA_EVERY_S = 0.1
LEAST_ANSWER_TOKENS = 16


@dataclass(frozen=True)
class DeltaTarget:
    """What the deltas of a turn are part of: the caption, or keyframe `keyframe`'s differential."""

    keyframe: int | None = None

    def delta(self, text: str) -> Delta:
        return Delta(of="caption" if self.keyframe is None else "differential", keyframe=self.keyframe, text=text)


class Turns:
    """The turns of one attempt at a job. `usage` is of all of them."""

    def __init__(self, captioner: Captioner, publisher: Publisher, name: str) -> None:
        self._captioner = captioner
        self._publisher = publisher
        self._name = name
        self._count = 0
        self._told_at = -DELTA_EVERY_S
        self.usage = Usage()

    async def run(self, turn: Turn, told: DeltaTarget | None) -> str:
        """Return the answer, without space around it; with `told`, it goes out in deltas that add up to it.

        Raises InvalidOption where the prompt leaves no room to answer.
        """
        turn = await self._bounded(turn)
        self._count += 1
        said, unsaid = "", ""
        async with aclosing(self._captioner.generate(turn, f"{self._name}-{self._count}")) as parts:
            async for part in parts:
                match part:
                    case Piece():
                        unsaid += part.text
                    case Done():
                        self.usage += part.usage
                ready = unsaid.rstrip() if said else unsaid.strip()
                if told and ready and self._wait_s() <= 0:
                    said, unsaid = said + ready, unsaid[len(unsaid.rstrip()) :]
                    await self._tell(told, ready)
        rest = unsaid.rstrip() if said else unsaid.strip()
        if told and rest:
            await asyncio.sleep(self._wait_s())
            await self._tell(told, rest)
        return said + rest

    async def _bounded(self, turn: Turn) -> Turn:
        """Return `turn` with no more tokens to generate than there is room for."""
        room = self._captioner.context_tokens - await self._captioner.prompt_tokens(turn)
        if room < LEAST_ANSWER_TOKENS:
            raise InvalidOption(
                f"The prompt does not fit: the model takes {self._captioner.context_tokens} tokens, "
                f"and it would need {LEAST_ANSWER_TOKENS - room} more."
            )
        return turn.with_max_tokens(min(turn.max_tokens, room))

    def _wait_s(self) -> float:
        return max(0.0, self._told_at + DELTA_EVERY_S - asyncio.get_running_loop().time())

    async def _tell(self, told: DeltaTarget, text: str) -> None:
        self._told_at = asyncio.get_running_loop().time()
        await self._publisher.append(told.delta(text))


def max_tokens(options: Decoding, default: int, captioner: Captioner) -> int:
    """Return the bound of an answer: as asked for, else `default`, and never more than half the context."""
    return min(options.max_tokens or default, captioner.context_tokens // 2)


def video_options(record: Record) -> VideoOptions:
    """Return the options of a video's job."""
    assert isinstance(record.options, VideoOptions)
    return record.options
