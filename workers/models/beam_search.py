"""Beam search on AsyncLLM: vLLM's own, as its OpenAI server does it.

Each step is a request of one token for each beam; prefix caching makes the shared part free. Nothing can be streamed:
which beam wins is known at the end. A beam ends at the tokenizer's `eos_token_id`, in a chat model the mark that closes
a turn.
"""

from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
from vllm.inputs import EngineInput
from vllm.outputs import RequestOutput
from vllm.sampling_params import BeamSearchParams
from vllm.v1.engine.async_llm import AsyncLLM


class _Search(BeamSearchOnlineMixin):
    def __init__(self, llm: AsyncLLM) -> None:
        self.engine_client = llm
        self.renderer = llm.renderer


async def beam_search(
    llm: AsyncLLM, prompt: EngineInput, request_id: str, *, num_beams: int, max_tokens: int, temperature: float
) -> RequestOutput:
    """Return the finished search; its first output is the best beam."""
    params = BeamSearchParams(beam_width=num_beams, max_tokens=max_tokens, temperature=temperature)
    last: RequestOutput | None = None
    async for output in _Search(llm).beam_search(prompt, request_id, params):
        last = output
    assert last is not None, "beam search ends with an output"
    return last
