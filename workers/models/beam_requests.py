"""Runs a beam search on AsyncLLM.

Each step sends the engine one request of one token for each running beam; prefix caching makes the shared prefix cheap.
Nothing can be streamed, because the best beam is known only at the end.
"""

import asyncio
from contextlib import aclosing
from typing import Any, cast

from vllm import SamplingParams
from vllm.inputs import EngineInput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineGenerateError

from workers.models.beam_search import Beam, BeamSearch, LogProbs


async def run(search: BeamSearch, llm: AsyncLLM, prompt: EngineInput, request_id: str, priority: int) -> None:
    """Run the search to its end. Cancelling it, or an error of one request, aborts all requests of the step."""
    params = SamplingParams(
        max_tokens=1,
        temperature=0,
        logprobs=search.candidates,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    step = 0
    while not search.done:
        step += 1
        try:
            async with asyncio.TaskGroup() as group:
                requests = [
                    group.create_task(
                        _next_logprobs(llm, _extended(prompt, beam), params, f"{request_id}-{step}-{k}", priority)
                    )
                    for k, beam in enumerate(search.running)
                ]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        search.advance([request.result() for request in requests])


def _extended(prompt: EngineInput, beam: Beam) -> EngineInput:
    """Return the prompt followed by the beam's tokens."""
    rendered: Any = prompt
    return cast(EngineInput, {**rendered, "prompt_token_ids": [*rendered["prompt_token_ids"], *beam.tokens]})


async def _next_logprobs(
    llm: AsyncLLM, prompt: EngineInput, params: SamplingParams, request_id: str, priority: int
) -> LogProbs:
    logprobs = None
    async with aclosing(llm.generate(prompt, params, request_id, priority=priority)) as outputs:
        async for output in outputs:
            logprobs = output.outputs[0].logprobs
    if not logprobs:
        raise EngineGenerateError("the engine aborted a beam")
    return {token: entry.logprob for token, entry in logprobs[0].items()}
