"""A `Turn` as the engine takes it, for this family: the trained layout of one chat turn, HD tiling's token counts."""

from typing import Any, cast

from vllm.inputs import EngineInput, TokensPrompt
from vllm.renderers.base import BaseRenderer

from workers.models.engine import Turn
from workers.xcomposer2.config import XComposer2Config
from workers.xcomposer2.hd_tiling import plan_tiling
from workers.xcomposer2.tokenizer import neutralise, stop_ids, turn_ids


class XComposer2Turns:
    """`ModelTurns` of the ShareCaptioner-Video family. One image a turn."""

    takes_hd_num = True

    def __init__(self, renderer: BaseRenderer[Any], config: XComposer2Config) -> None:
        self._renderer = renderer
        self._tokenizer: Any = renderer.get_tokenizer()  # XComposer2Tokenizer
        self._config = config
        self.stop_ids = stop_ids(self._tokenizer)

    def count_tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(neutralise(text), add_special_tokens=False))

    async def prompt_tokens(self, turn: Turn) -> int:
        text = len(turn_ids(self._tokenizer, turn.prompt, image=False))
        if turn.image is None:
            return text
        tiling = plan_tiling(*turn.image.size, self._hd_num(turn), self._config.vision_config.image_size)
        return text + tiling.image_tokens(self._config.merged_side)

    async def rendered(self, turn: Turn) -> EngineInput:
        prompt = TokensPrompt(prompt_token_ids=turn_ids(self._tokenizer, turn.prompt, image=turn.image is not None))
        if turn.image is not None:
            prompt["multi_modal_data"] = {"image": turn.image}
            prompt["mm_processor_kwargs"] = {"hd_num": self._hd_num(turn)}
        [rendered] = await self._renderer.render_cmpl_async([prompt])
        return cast(EngineInput, rendered)

    def _hd_num(self, turn: Turn) -> int:
        hd_num: int = turn.hd_num or self._config.hd_num
        return hd_num
