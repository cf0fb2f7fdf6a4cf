"""Beam search on AsyncLLM, using the implementation of vLLM's OpenAI server.

Each step sends one request of one token for each beam; prefix caching makes the shared prefix free. Nothing can be
streamed, because the best beam is known only at the end. A beam ends at the tokenizer's `eos_token_id`; in a chat model
that is the token that closes a turn.
"""

from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
from vllm.inputs import EngineInput
from vllm.outputs import RequestOutput
from vllm.sampling_params import BeamSearchParams
from vllm.v1.engine.async_llm import AsyncLLM


class _BeamSearch(BeamSearchOnlineMixin):
    def __init__(self, llm: AsyncLLM) -> None:
        self.engine_client = llm
        self.renderer = llm.renderer


async def beam_search(
    llm: AsyncLLM, prompt: EngineInput, request_id: str, *, num_beams: int, max_tokens: int, temperature: float
) -> RequestOutput:
    """Run the search and return its result. The first output is the best beam."""
    params = BeamSearchParams(beam_width=num_beams, max_tokens=max_tokens, temperature=temperature)
    result: RequestOutput | None = None
    async for output in _BeamSearch(llm).beam_search(prompt, request_id, params):
        result = output
    assert result is not None, "beam search ends with an output"
    return result
