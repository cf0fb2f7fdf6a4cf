"""Beam search with the rules of Hugging Face's `generate(num_beams=..., do_sample=False)`.

Each step continues the running beams by one token and keeps the likeliest. The search ends as soon as no running beam
can still beat the worst of `num_beams` finished ones (`early_stopping=False`). A beam's score is its log-probability
divided by its length, the default length penalty of 1. `beam_requests.py` runs a search on the engine.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from service.contract.jobs import FinishReason

LogProbs = Mapping[int, float]
"""Log-probability of each of the likeliest next tokens."""


@dataclass(frozen=True)
class Beam:
    """The tokens of an answer so far, and the sum of their log-probabilities."""

    tokens: tuple[int, ...] = ()
    logprob: float = 0.0

    @property
    def score(self) -> float:
        return self.logprob / len(self.tokens)


class BeamSearch:
    """The state of one search. `stop_ids`: tokens that end an answer. `max_tokens`: its greatest length."""

    def __init__(self, num_beams: int, max_tokens: int, stop_ids: Collection[int]) -> None:
        self._num_beams = num_beams
        self._max_tokens = max_tokens
        self._stop_ids = frozenset(stop_ids)
        self.candidates = max(2, 1 + len(self._stop_ids)) * num_beams
        """How many continuations a step considers: enough that `num_beams` remain even if all others end."""
        self.running = [Beam()]
        self.finished: list[Beam] = []

    def advance(self, logprobs: Sequence[LogProbs]) -> None:
        """Continue the search. `logprobs[k]` holds at least the `candidates` likeliest tokens after `running[k]`."""
        continued = [
            Beam((*beam.tokens, token), beam.logprob + logprob)
            for beam, tokens in zip(self.running, logprobs, strict=True)
            for token, logprob in tokens.items()
        ]
        likeliest = sorted(continued, key=lambda beam: -beam.logprob)[: self.candidates]
        # The candidates after the first `num_beams` only replace those that have finished.
        finished = [beam for beam in likeliest[: self._num_beams] if self._is_finished(beam)]
        self.running = [beam for beam in likeliest if not self._is_finished(beam)][: self._num_beams]
        self.finished = sorted(self.finished + finished, key=lambda beam: -beam.score)[: self._num_beams]

    @property
    def done(self) -> bool:
        """Whether no running beam can enter the finished ones, judged by the best running score so far."""
        if not self.running:
            return True
        return len(self.finished) == self._num_beams and self.running[0].score <= self.finished[-1].score

    @property
    def text_tokens(self) -> tuple[int, ...]:
        """The best answer without the token that ended it."""
        tokens = self.finished[0].tokens
        return tokens[:-1] if self.finish_reason == "stop" else tokens

    @property
    def finish_reason(self) -> FinishReason:
        return "stop" if self.finished[0].tokens[-1] in self._stop_ids else "length"

    def _is_finished(self, beam: Beam) -> bool:
        return beam.tokens[-1] in self._stop_ids or len(beam.tokens) == self._max_tokens
