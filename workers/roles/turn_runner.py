"""Runs model turns: streams the answer as delta events while it is generated, and adds up the tokens.

All roles call the model through `TurnRunner`.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass

from service.contract.errors import InvalidOption
from service.contract.events import Delta
from service.contract.jobs import Decoding, FinishReason, JobKind, Record, Usage
from workers.models.engine import Captioner, Done, Piece, Turn
from workers.publisher import EventSink
from workers.shares import Permit

DELTA_EVERY_S = 0.1
"""A job sends at most one delta in each interval of this length, apart from the last one of each text.

All jobs of a worker have the same intervals, so their deltas are stored together (`service/contract/store/leases.py`).
"""
MIN_ANSWER_TOKENS = 16
MAX_BEAM_SEARCHES = 2
"""How many beam searches of one job run at once. Each is up to eight sequences in the engine."""
LONG_PATIENCE_S = 10.0
"""A turn of a video, or one with beams, is answered after short answers that are requested up to this long later."""


@dataclass(frozen=True)
class Answer:
    """The text of a finished turn. `finish_reason` is "length" if it was cut off at the token limit."""

    text: str
    finish_reason: FinishReason


@dataclass(frozen=True)
class DeltaTarget:
    """The text that a turn's deltas belong to: the differential caption of `keyframe`, or if None the caption."""

    keyframe: int | None = None

    def delta(self, text: str) -> Delta:
        return Delta(of="caption" if self.keyframe is None else "differential", keyframe=self.keyframe, text=text)


class _StreamedText:
    """Collects generated pieces and returns them in parts. Joined, they have no leading or trailing white space."""

    def __init__(self) -> None:
        self.taken = ""
        self._pending = ""

    def add(self, piece: str) -> None:
        self._pending += piece

    def take(self) -> str:
        """Remove and return the pending text; white space at its end stays until more text follows."""
        part = self._pending.rstrip() if self.taken else self._pending.strip()
        if part:
            self._pending = self._pending[len(self._pending.rstrip()) :]
            self.taken += part
        return part


class TurnRunner:
    """Runs the turns of one attempt. `usage` is the total of its turns; `name` prefixes their request ids.

    A turn waits for the `permit` of its API key before it is sent to the engine. `patience_s` is that of its turns.
    `lost_turn`: the engine died while it had a turn of this attempt.
    """

    def __init__(self, captioner: Captioner, events: EventSink, name: str, permit: Permit, patience_s: float) -> None:
        self._captioner = captioner
        self._events = events
        self._name = name
        self._permit = permit
        self._patience_s = patience_s
        self._beam_searches = asyncio.Semaphore(MAX_BEAM_SEARCHES)
        self._count = 0
        self._sent_in = -1
        self.lost_turn = False
        self.usage = Usage()

    async def run(self, turn: Turn, target: DeltaTarget | None) -> Answer:
        """Return the answer, without white space at its ends. If `target` is given, stream it as deltas.

        Raises InvalidOption if the prompt leaves no room for an answer.
        """
        turn = (await self._limited(turn)).with_patience(self._patience_s)
        self._count += 1
        text = _StreamedText()
        finish_reason: FinishReason = "stop"
        request_id = f"{self._name}-{self._count}"
        async with (
            self._beam_searches if turn.decoding.num_beams > 1 else nullcontext(),
            self._permit(turn.decoding.num_beams),
            self._noting_engine_death(),
            aclosing(self._captioner.generate(turn, request_id)) as parts,
        ):
            async for part in parts:
                match part:
                    case Piece():
                        text.add(part.text)
                    case Done():
                        self.usage += part.usage
                        finish_reason = part.finish_reason
                if target and self._interval() != self._sent_in:
                    await self._send(target, text.take())
        rest = text.take()
        if target and rest:
            self._events.submit(target.delta(rest))
        return Answer(text.taken, finish_reason)

    @asynccontextmanager
    async def _noting_engine_death(self) -> AsyncIterator[None]:
        """Set `lost_turn` if the engine dies in this context."""
        was_alive = self._captioner.alive
        try:
            yield
        finally:
            self.lost_turn = self.lost_turn or (was_alive and not self._captioner.alive)

    async def _limited(self, turn: Turn) -> Turn:
        """Return `turn` with `max_tokens` reduced to the space that its prompt leaves in the context."""
        free_tokens = self._captioner.context_tokens - await self._captioner.prompt_tokens(turn)
        if free_tokens < MIN_ANSWER_TOKENS:
            raise InvalidOption(
                f"The prompt does not fit: the model's context has {self._captioner.context_tokens} tokens, "
                f"and {MIN_ANSWER_TOKENS - free_tokens} more are needed."
            )
        return turn.with_max_tokens(min(turn.max_tokens, free_tokens))

    def _interval(self) -> int:
        """Return the number of the current interval of `DELTA_EVERY_S`."""
        return int(asyncio.get_running_loop().time() / DELTA_EVERY_S)

    async def _send(self, target: DeltaTarget, text: str) -> None:
        if text:
            self._sent_in = self._interval()
            await self._events.append(target.delta(text))


def patience_s(record: Record) -> float:
    """Return the patience of the job's turns: none for a recaption or a clip without beams."""
    short = record.kind is not JobKind.VIDEO and record.options.num_beams == 1
    return 0.0 if short else LONG_PATIENCE_S


def max_answer_tokens(options: Decoding, default: int, captioner: Captioner) -> int:
    """Return the token limit of an answer: the job's, else `default`, and at most half the context."""
    return min(options.max_tokens or default, captioner.context_tokens // 2)
