"""`Captioner` on vLLM: one AsyncLLM with a checkpoint of the ShareCaptioner-Video family, many turns at once.

Prompt, image tokens and end marks are the plugin's (`workers/xcomposer2`); this module turns them into requests.
"""

import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, cast

import torch
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs import EngineInput, TokensPrompt
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from service.contract.errors import EngineFailed
from service.contract.jobs import Usage
from workers.beams import beam_search
from workers.engine import Done, ModelDefaults, Piece, Turn
from workers.settings import Settings
from workers.xcomposer2 import check_registered, engine_args
from workers.xcomposer2.checkpoint import read_config
from workers.xcomposer2.config import XComposer2Config
from workers.xcomposer2.hd_tiling import plan_tiling
from workers.xcomposer2.tokenizer import load_tokenizer, stop_ids, turn_ids

GIB = 1 << 30


def model_defaults(model: str) -> ModelDefaults:
    """Return what the checkpoint's config.json says under `sharecap`, and this family's defaults for the rest."""
    return ModelDefaults(**read_config(model).get("sharecap", {}))


class VllmCaptioner:
    """A checkpoint of the ShareCaptioner-Video family in vLLM's AsyncLLM, which lives on the loop it was started on."""

    def __init__(self, model: str, llm: AsyncLLM) -> None:
        self._config = XComposer2Config.from_published(read_config(model))
        self._tokenizer = load_tokenizer(model)
        self._stop_ids = stop_ids(self._tokenizer)
        self._llm = llm
        self.context_tokens: int = llm.model_config.max_model_len
        self.defaults = model_defaults(model)

    @classmethod
    def start(cls, settings: Settings) -> "VllmCaptioner":
        """Load the model. Call on the running loop that is to drive it; it blocks that loop until it is ready."""
        check_registered()
        gpu = torch.cuda.is_available()
        overrides: dict[str, Any] = {"dtype": "bfloat16" if gpu else "float32", "use_tqdm_on_load": False}
        if gpu:
            overrides["gpu_memory_utilization"] = settings.gpu_memory_utilization
        else:
            overrides["kv_cache_memory_bytes"] = int(settings.cpu_kv_cache_gib * GIB)
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # one engine process, not one in another
            overrides["enforce_eager"] = True  # compiling takes longer than all that a small model will say
        if settings.max_model_len is not None:
            overrides["max_model_len"] = settings.max_model_len
        args = AsyncEngineArgs(**engine_args(settings.model, **overrides))
        return cls(settings.model, AsyncLLM.from_engine_args(args))

    @property
    def alive(self) -> bool:
        return not self._llm.errored

    def stop(self) -> None:
        """End the engine and its processes."""
        self._llm.shutdown()

    def count_tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def prompt_tokens(self, turn: Turn) -> int:
        text = len(turn_ids(self._tokenizer, turn.prompt, image=False))
        return text + (self._image_tokens(turn) if turn.image else 0)

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
            stop_token_ids=self._stop_ids,
            output_kind=RequestOutputKind.DELTA,
        )
        count, last = 0, None
        outputs = self._llm.generate(await self._rendered(turn), params, request_id)
        async with aclosing(outputs):
            async for last in outputs:
                count += len(last.outputs[0].token_ids)
                if last.outputs[0].text:
                    yield Piece(last.outputs[0].text)
        assert last is not None, "vLLM ends every request with an output"
        yield self._done(turn, last, count)

    async def _beams(self, turn: Turn, request_id: str) -> AsyncGenerator[Piece | Done, None]:
        decoding = turn.decoding
        output = await beam_search(
            self._llm,
            self._tokenizer,
            await self._rendered(turn),
            request_id,
            stop_id=self._stop_ids[0],
            num_beams=decoding.num_beams,
            max_tokens=turn.max_tokens,
            temperature=decoding.temperature,
        )
        yield Piece(output.outputs[0].text)
        yield self._done(turn, output, len(output.outputs[0].token_ids))

    async def _rendered(self, turn: Turn) -> EngineInput:
        """Return the turn as the engine takes it: tokens, and the image cut into crops."""
        prompt = TokensPrompt(prompt_token_ids=turn_ids(self._tokenizer, turn.prompt, image=turn.image is not None))
        if turn.image is not None:
            prompt["multi_modal_data"] = {"image": turn.image}
            prompt["mm_processor_kwargs"] = {"hd_num": self._hd_num(turn)}
        [rendered] = await self._llm.renderer.render_cmpl_async([prompt])
        return cast(EngineInput, rendered)

    def _done(self, turn: Turn, output: RequestOutput, completion_tokens: int) -> Done:
        usage = Usage(
            prompt_tokens=len(output.prompt_token_ids or ()),
            image_tokens=self._image_tokens(turn) if turn.image else 0,
            completion_tokens=completion_tokens,
        )
        return Done(usage, stopped=output.outputs[0].finish_reason == "stop")

    def _image_tokens(self, turn: Turn) -> int:
        assert turn.image is not None
        tiling = plan_tiling(*turn.image.size, self._hd_num(turn), self._config.vision_config.image_size)
        return tiling.image_tokens(self._config.merged_side)

    def _hd_num(self, turn: Turn) -> int:
        hd_num: int = turn.hd_num or self._config.hd_num
        return hd_num
