"""`Captioner` on vLLM: one AsyncLLM, many turns at once.

What a turn looks like to the engine is said by the model's `ModelTurns`: `xcomposer2/turns.py` for checkpoints of the
ShareCaptioner-Video family, `chat.py` for any other chat model. This module turns them into requests.
"""

import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Protocol

import torch
from pydantic import ValidationError
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs import EngineInput
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from service.contract.errors import EngineFailed
from service.contract.jobs import Usage
from workers import xcomposer2
from workers.models import chat_models as chat
from workers.models.beam_search import beam_search
from workers.models.engine import CannotWork, Done, ModelDefaults, Piece, Turn
from workers.models.xcomposer2_turns import XComposer2Turns
from workers.prompts import Dialect
from workers.prompts.choice import chosen_dialect
from workers.settings import Settings
from workers.xcomposer2.checkpoint import is_xcomposer2, read_config

GIB = 1 << 30


class ModelTurns(Protocol):
    """How one family of models is asked."""

    takes_hd_num: bool

    @property
    def stop_ids(self) -> Sequence[int]:
        """What ends an answer, beside what vLLM knows of."""
        ...

    def count_tokens(self, text: str) -> int: ...

    async def prompt_tokens(self, turn: Turn) -> int: ...

    async def rendered(self, turn: Turn) -> EngineInput:
        """Return the turn as the engine takes it: tokens, and the images processed."""
        ...


def model_defaults(model: str) -> ModelDefaults:
    """Return what the checkpoint's config.json says under `sharecap`, and the family's defaults for the rest."""
    return ModelDefaults(**read_config(model).get("sharecap", {}))


class VllmCaptioner:
    """A model in vLLM's AsyncLLM, which lives on the loop it was started on."""

    def __init__(self, llm: AsyncLLM, turns: ModelTurns, dialect: Dialect, defaults: ModelDefaults) -> None:
        self._llm = llm
        self._turns = turns
        self.context_tokens: int = llm.model_config.max_model_len
        self.defaults = defaults
        self.dialect = dialect
        self.takes_hd_num = turns.takes_hd_num
        self.count_tokens = turns.count_tokens
        self.prompt_tokens = turns.prompt_tokens

    @classmethod
    def start(cls, settings: Settings) -> "VllmCaptioner":
        """Load the model. Call on the running loop that is to drive it; it blocks that loop until it is ready.

        Raises CannotWork for a model that vLLM does not serve, that takes no images, or that cannot chat.
        """
        family = is_xcomposer2(read_config(settings.model))
        if family:
            xcomposer2.check_registered()
        config = _engine_config(settings, family=family)
        pictures = 1 if family else chat.pictures_at_once(config.model_config)
        dialect = chosen_dialect(settings.prompt_dialect, family=family, pictures=pictures)
        llm = AsyncLLM.from_vllm_config(config, usage_context=UsageContext.ENGINE_CONTEXT)
        try:
            hf_config: Any = config.model_config.hf_config
            turns: ModelTurns = (
                XComposer2Turns(llm.renderer, hf_config)
                if family
                else chat.ChatTurns(llm.renderer, config.model_config)
            )
        except CannotWork:
            llm.shutdown()
            raise
        return cls(llm, turns, dialect, model_defaults(settings.model))

    @property
    def alive(self) -> bool:
        return not self._llm.errored

    def stop(self) -> None:
        """End the engine and its processes."""
        self._llm.shutdown()

    async def generate(self, turn: Turn, request_id: str) -> AsyncGenerator[Piece | Done, None]:
        try:
            answers = self._beams(turn, request_id) if turn.decoding.num_beams > 1 else self._stream(turn, request_id)
            async with aclosing(answers):
                async for answer in answers:
                    yield answer
        except EngineDeadError:
            raise EngineFailed("The captioning engine stopped; the job can be sent again.") from None
        except EngineGenerateError as error:
            raise EngineFailed("The captioning engine could not answer.") from error

    async def _stream(self, turn: Turn, request_id: str) -> AsyncGenerator[Piece | Done, None]:
        params = SamplingParams(
            temperature=turn.decoding.temperature,
            seed=turn.decoding.seed,
            max_tokens=turn.max_tokens,
            stop_token_ids=list(self._turns.stop_ids),
            output_kind=RequestOutputKind.DELTA,
        )
        count, last = 0, None
        prompt = await self._turns.rendered(turn)
        outputs = self._llm.generate(prompt, params, request_id)
        async with aclosing(outputs):
            async for last in outputs:
                count += len(last.outputs[0].token_ids)
                if last.outputs[0].text:
                    yield Piece(last.outputs[0].text)
        assert last is not None, "vLLM ends every request with an output"
        yield _done(prompt, last, count)

    async def _beams(self, turn: Turn, request_id: str) -> AsyncGenerator[Piece | Done, None]:
        decoding = turn.decoding
        prompt = await self._turns.rendered(turn)
        output = await beam_search(
            self._llm,
            prompt,
            request_id,
            num_beams=decoding.num_beams,
            max_tokens=turn.max_tokens,
            temperature=decoding.temperature,
        )
        yield Piece(output.outputs[0].text)
        yield _done(prompt, output, len(output.outputs[0].token_ids))


def _engine_config(settings: Settings, *, family: bool) -> VllmConfig:
    """Return vLLM's configuration for the model on this machine. Raises CannotWork."""
    overrides: dict[str, Any] = {"use_tqdm_on_load": False}
    if torch.cuda.is_available():
        overrides["dtype"] = "bfloat16" if family else "auto"
        overrides["gpu_memory_utilization"] = settings.gpu_memory_utilization
    else:
        overrides["dtype"] = "float32"
        overrides["kv_cache_memory_bytes"] = int(settings.cpu_kv_cache_gib * GIB)
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # one engine process, not one in another
        overrides["enforce_eager"] = True  # compiling takes longer than all that a small model will say
    if settings.max_model_len is not None:
        overrides["max_model_len"] = settings.max_model_len
    try:
        arguments = (xcomposer2.engine_args if family else chat.engine_args)(settings.model)
        return AsyncEngineArgs(**{**arguments, **overrides}).create_engine_config(UsageContext.ENGINE_CONTEXT)
    except ValueError as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise CannotWork(f"vLLM cannot serve {settings.model}: {reason}") from error


def _done(prompt: EngineInput, output: RequestOutput, completion_tokens: int) -> Done:
    placeholders: Any = prompt.get("mm_placeholders") or {}
    usage = Usage(
        prompt_tokens=len(output.prompt_token_ids or ()),
        image_tokens=sum(images.length for images in placeholders.get("image", ())),
        completion_tokens=completion_tokens,
    )
    return Done(usage, stopped=output.outputs[0].finish_reason == "stop")
