"""Beam search on AsyncLLM: vLLM's own, as its OpenAI server does it, with this family's end mark.

Each step is a request of one token for each beam; prefix caching makes the shared part free. Nothing can be streamed:
which beam wins is known at the end.
"""

from typing import Any

from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
from vllm.inputs import EngineInput
from vllm.outputs import RequestOutput
from vllm.sampling_params import BeamSearchParams
from vllm.v1.engine.async_llm import AsyncLLM

from workers.xcomposer2.tokenizer import XComposer2Tokenizer


class _EndMark:
    """The tokenizer as beam search needs it: ending at the chat's closing mark."""

    def __init__(self, tokenizer: XComposer2Tokenizer, stop_id: int) -> None:
        self.eos_token_id = stop_id
        self.decode = tokenizer.decode


class _Renderer:
    def __init__(self, tokenizer: _EndMark) -> None:
        self._tokenizer = tokenizer

    def get_tokenizer(self) -> _EndMark:
        return self._tokenizer


class _Search(BeamSearchOnlineMixin):
    def __init__(self, llm: AsyncLLM, tokenizer: _EndMark) -> None:
        self.engine_client = llm
        self.renderer: Any = _Renderer(tokenizer)


async def beam_search(
    llm: AsyncLLM,
    tokenizer: XComposer2Tokenizer,
    prompt: EngineInput,
    request_id: str,
    *,
    stop_id: int,
    num_beams: int,
    max_tokens: int,
    temperature: float,
) -> RequestOutput:
    """Return the finished search; its first output is the best beam."""
    params = BeamSearchParams(beam_width=num_beams, max_tokens=max_tokens, temperature=temperature)
    search = _Search(llm, _EndMark(tokenizer, stop_id))
    last: RequestOutput | None = None
    async for output in search.beam_search(prompt, request_id, params):
        last = output
    assert last is not None, "beam search ends with an output"
    return last
