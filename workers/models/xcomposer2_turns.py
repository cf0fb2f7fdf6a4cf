"""Turns of the ShareCaptioner-Video family: the chat layout used in training, and token counts from HD tiling."""

from collections.abc import Sequence
from typing import Any, cast
from uuid import uuid4

from vllm.config import ModelConfig
from vllm.inputs import EngineInput, TokensPrompt
from vllm.renderers.base import BaseRenderer

from workers.models.engine import Turn
from workers.xcomposer2.checkpoint import read_config
from workers.xcomposer2.config import XComposer2Config
from workers.xcomposer2.hd_tiling import plan_tiling
from workers.xcomposer2.tokenizer import XComposer2Tokenizer, load_tokenizer, neutralise, stop_ids, turn_ids


class XComposer2Turns:
    """`OfflineTurns` of the family: prompts as token ids. A turn has at most one image."""

    def __init__(self, tokenizer: XComposer2Tokenizer, config: XComposer2Config) -> None:
        self._tokenizer = tokenizer
        self._config = config
        self.context_tokens: int = config.max_position_embeddings
        self.image_token_id: int = config.image_token_id
        self.stop_ids = stop_ids(tokenizer)

    def count_tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(neutralise(text), add_special_tokens=False))

    def prompt_tokens(self, turn: Turn) -> int:
        text_tokens = len(turn_ids(self._tokenizer, turn.prompt, image=False))
        if turn.image is None:
            return text_tokens
        tiling = plan_tiling(*turn.image.size, self._hd_num(turn), self._config.vision_config.image_size)
        return text_tokens + tiling.image_tokens(self._config.merged_side)

    def prompt(self, turn: Turn) -> TokensPrompt:
        prompt = TokensPrompt(prompt_token_ids=turn_ids(self._tokenizer, turn.prompt, image=turn.image is not None))
        if turn.image is not None:
            prompt["multi_modal_data"] = {"image": turn.image}
            prompt["multi_modal_uuids"] = {"image": [uuid4().hex]}  # saves hashing an image that no other turn has
            prompt["mm_processor_kwargs"] = {"hd_num": self._hd_num(turn)}
        return prompt

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(token_ids)))

    def _hd_num(self, turn: Turn) -> int:
        hd_num: int = turn.hd_num or self._config.hd_num
        return hd_num


def load_turns(model: str) -> XComposer2Turns:
    """Load the tokenizer and the configuration of a checkpoint. Raises FileNotFoundError or ValueError."""
    return XComposer2Turns(load_tokenizer(model), XComposer2Config.from_published(read_config(model)))


class XComposer2TurnRenderer:
    """`TurnRenderer` of the family: the same prompts, with their images processed by vLLM's renderer."""

    takes_hd_num = True

    def __init__(self, renderer: BaseRenderer[Any], config: ModelConfig) -> None:
        hf_config: Any = config.hf_config  # XComposer2Config
        tokenizer: Any = renderer.get_tokenizer()  # XComposer2Tokenizer
        self._renderer = renderer
        self._turns = XComposer2Turns(tokenizer, hf_config)
        self.stop_ids = self._turns.stop_ids
        self.count_tokens = self._turns.count_tokens

    async def prompt_tokens(self, turn: Turn) -> int:
        return self._turns.prompt_tokens(turn)

    async def render(self, turn: Turn) -> EngineInput:
        [rendered] = await self._renderer.render_cmpl_async([self._turns.prompt(turn)])
        return cast(EngineInput, rendered)
