"""`Captioner` on vLLM: one AsyncLLM that answers many turns concurrently.

The model's row in `families.py` says how the engine is configured and how turns are rendered. This module sends them
to the engine as requests and yields the answers.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import torch
from pydantic import ValidationError
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs import EngineInput
from vllm.sampling_params import RequestOutputKind
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from service.contract.errors import EngineFailed
from service.contract.jobs import FinishReason, Usage
from service.contract.settings import GIB
from workers.models import beam_requests
from workers.models.beam_search import BeamSearch
from workers.models.engine import CannotWork, Done, ModelDefaults, Piece, Turn, TurnRenderer
from workers.models.families import ModelFamily, family_of
from workers.models.short_first import ShortFirst
from workers.models.watchdog import StepCounter, kill_engine, wait_for_stall
from workers.prompts.choice import choose_prompts
from workers.prompts.style import PromptStyle
from workers.settings import (
    ENGINE_STALL_S_ON_CPU,
    ENGINE_STALL_S_ON_GPU,
    TEXT_FIRST_S_ON_CPU,
    TEXT_FIRST_S_ON_GPU,
    Settings,
)
from workers.xcomposer2.checkpoint import read_config

log = logging.getLogger("sharecap.worker")


def model_defaults(model: str) -> ModelDefaults:
    """Return the defaults in the section `sharecap` of the checkpoint's config.json, completed by the general ones."""
    return ModelDefaults(**read_config(model).get("sharecap", {}))


class VllmCaptioner:
    """A model in vLLM's AsyncLLM. It belongs to the event loop on which it was started.

    `stalled`: the watchdog has killed the engine because it hung.
    """

    def __init__(
        self, llm: AsyncLLM, renderer: TurnRenderer, prompts: PromptStyle, settings: Settings, counter: StepCounter
    ) -> None:
        self._llm = llm
        self._renderer = renderer
        self.context_tokens: int = llm.model_config.max_model_len
        self.defaults = model_defaults(settings.model)
        self.prompts = prompts
        self.takes_hd_num = renderer.takes_hd_num
        self.count_tokens = renderer.count_tokens
        self.prompt_tokens = renderer.prompt_tokens
        self.stalled = False
        self._stop_ids = _stop_ids(llm, renderer)
        self._short_first = ShortFirst(_hold_s(settings))
        self._watchdog = asyncio.create_task(self._watch(counter, _stall_s(settings)))

    @classmethod
    def start(cls, settings: Settings) -> "VllmCaptioner":
        """Load the model. Call this on the event loop that will run the engine; it blocks the loop while loading.

        Raises CannotWork if vLLM does not support the model, or if the model accepts no images or cannot chat.
        """
        family = family_of(read_config(settings.model))
        family.check_installed()
        config = _engine_config(settings, family)
        images_per_turn = family.images_per_turn(config.model_config)
        prompts = choose_prompts(settings.prompt_dialect, family.prompts, images_per_turn)
        counter = StepCounter()
        llm = AsyncLLM.from_vllm_config(config, usage_context=UsageContext.ENGINE_CONTEXT, stat_loggers=[counter])
        try:
            renderer = family.turn_renderer(llm.renderer, config.model_config)
        except CannotWork:
            llm.shutdown()
            raise
        return cls(llm, renderer, prompts, settings, counter)

    @property
    def alive(self) -> bool:
        return not self.stalled and not self._llm.errored

    def stop(self) -> None:
        """Stop the engine and its processes."""
        self._watchdog.cancel()
        self._llm.shutdown()

    async def _watch(self, counter: StepCounter, stall_s: float) -> None:
        await wait_for_stall(self._llm, counter, stall_s)
        log.error("the captioning engine has taken no step for %g s (ENGINE_STALL_S) and is killed", stall_s)
        self.stalled = True
        kill_engine(self._llm)

    async def generate(self, turn: Turn, request_id: str) -> AsyncGenerator[Piece | Done, None]:
        run = self._beam_search if turn.decoding.num_beams > 1 else self._sample
        priority = round(1000 * (time.monotonic() + turn.patience_s))  # ms; vLLM schedules smaller numbers first
        try:
            async with (
                self._short_first.admit(patient=turn.patience_s > 0),
                aclosing(run(turn, request_id, priority)) as parts,
            ):
                async for part in parts:
                    yield part
        except EngineDeadError:
            raise EngineFailed("The captioning engine stopped. The job can be submitted again.") from None
        except EngineGenerateError as error:
            raise EngineFailed("The captioning engine could not answer.") from error

    async def _sample(self, turn: Turn, request_id: str, priority: int) -> AsyncGenerator[Piece | Done, None]:
        params = SamplingParams(
            temperature=turn.decoding.temperature,
            seed=turn.decoding.seed,
            max_tokens=turn.max_tokens,
            stop_token_ids=list(self._renderer.stop_ids),
            output_kind=RequestOutputKind.DELTA,
        )
        completion_tokens, output = 0, None
        prompt = await self._renderer.render(turn)
        async with aclosing(self._llm.generate(prompt, params, request_id, priority=priority)) as outputs:
            async for output in outputs:
                completion_tokens += len(output.outputs[0].token_ids)
                if output.outputs[0].text:
                    yield Piece(output.outputs[0].text)
        assert output is not None, "vLLM ends every request with an output"
        reason: FinishReason = "length" if output.outputs[0].finish_reason == "length" else "stop"
        yield _done(prompt, completion_tokens, reason)

    async def _beam_search(self, turn: Turn, request_id: str, priority: int) -> AsyncGenerator[Piece | Done, None]:
        prompt = await self._renderer.render(turn)
        search = BeamSearch(turn.decoding.num_beams, turn.max_tokens, self._stop_ids)
        await beam_requests.run(search, self._llm, prompt, request_id, priority)
        yield Piece(self._llm.renderer.get_tokenizer().decode(search.text_tokens, skip_special_tokens=True))
        yield _done(prompt, len(search.finished[0].tokens), search.finish_reason)


def _engine_config(settings: Settings, family: ModelFamily) -> VllmConfig:
    """Return vLLM's configuration of the model for this machine. Raises CannotWork."""
    try:
        arguments = family.engine_args(settings.model) | _machine_args(settings, family) | settings.engine_args
        return AsyncEngineArgs(**arguments).create_engine_config(UsageContext.ENGINE_CONTEXT)
    except (ValueError, TypeError) as error:  # TypeError: ENGINE_ARGS contains an unknown argument
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise CannotWork(f"vLLM cannot serve {settings.model}: {reason}") from error


def _machine_args(settings: Settings, family: ModelFamily) -> dict[str, Any]:
    """Return the engine arguments that depend on the settings and on whether there is a GPU."""
    arguments: dict[str, Any] = {
        "use_tqdm_on_load": False,
        "scheduling_policy": "priority",
        "max_logprobs": -1,  # beam search asks for the number that it needs
    }
    if settings.max_model_len is not None:
        arguments["max_model_len"] = settings.max_model_len
    if torch.cuda.is_available():
        return arguments | {**family.gpu_args, "gpu_memory_utilization": settings.gpu_memory_utilization}
    # The engine always has its own process. With this, it also runs the model there, instead of in a third process.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    return arguments | {
        "dtype": "float32",
        "kv_cache_memory_bytes": int(settings.cpu_kv_cache_gib * GIB),
        "enforce_eager": True,  # compiling takes longer than a small model's answers
    }


def _stop_ids(llm: AsyncLLM, renderer: TurnRenderer) -> frozenset[int]:
    """Return the token ids at which vLLM ends an answer, including those of generation_config.json."""
    params = SamplingParams(stop_token_ids=list(renderer.stop_ids))
    generation_config = llm.model_config.try_get_generation_config()
    params.update_from_generation_config(generation_config, llm.renderer.get_eos_token_id())
    return frozenset(params.all_stop_token_ids)


def _hold_s(settings: Settings) -> float:
    """Return how long a turn of a video waits for short answers."""
    if settings.text_first_s is not None:
        return settings.text_first_s
    return TEXT_FIRST_S_ON_GPU if torch.cuda.is_available() else TEXT_FIRST_S_ON_CPU


def _stall_s(settings: Settings) -> float:
    """Return how long one step of the engine may take."""
    if settings.engine_stall_s is not None:
        return settings.engine_stall_s
    return ENGINE_STALL_S_ON_GPU if torch.cuda.is_available() else ENGINE_STALL_S_ON_CPU


def _done(prompt: EngineInput, completion_tokens: int, reason: FinishReason) -> Done:
    rendered: Any = prompt
    images = (rendered.get("mm_placeholders") or {}).get("image", ())
    usage = Usage(
        prompt_tokens=len(rendered["prompt_token_ids"]),
        image_tokens=sum(image.length for image in images),
        completion_tokens=completion_tokens,
    )
    return Done(usage, reason)
