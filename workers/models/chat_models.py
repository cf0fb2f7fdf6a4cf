"""A `Turn` as the engine takes it, for any chat model that vLLM serves: by vLLM's own chat machinery.

Messages become a prompt through the renderer that vLLM's OpenAI server uses, with the model's own chat template and
image placeholders; images are the model's own processor's business.
"""

from typing import Any, cast

from PIL import Image
from vllm.config import ModelConfig
from vllm.inputs import EngineInput
from vllm.model_executor.model_loader.utils import get_model_cls
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.renderers.base import BaseRenderer
from vllm.renderers.hf import HfRenderer, resolve_chat_template
from vllm.renderers.params import ChatParams, TokenizeParams
from vllm.utils.mistral import is_mistral_tokenizer

from workers.models.engine import CannotWork, Turn
from workers.models.special_tokens import Marks

PICTURES = 2
"""At most in one turn: a keyframe and the one before it."""
SIZES_KNOWN = 4096


def engine_args(model: str) -> dict[str, Any]:
    """Return vLLM's engine arguments for a checkpoint that it knows by itself."""
    return {
        "model": model,
        "trust_remote_code": False,
        "limit_mm_per_prompt": {"image": PICTURES, "video": 0, "audio": 0},
    }


def pictures_at_once(config: ModelConfig) -> int:
    """Return how many images one turn may have: 1 or 2. Raises CannotWork for a model that takes none."""
    if not config.supports_multimodal_inputs:
        raise CannotWork(f"{config.model} ({', '.join(config.architectures)}) takes no images: it cannot caption video")
    limits = MULTIMODAL_REGISTRY.create_processor(config).info.supported_mm_limits
    if "image" not in limits:
        raise CannotWork(f"{config.model} takes {', '.join(limits)} but no images: it cannot caption video")
    most = limits["image"]
    return PICTURES if most is None else min(most, PICTURES)


class ChatTurns:
    """`ModelTurns` of any chat model. Raises CannotWork where it has no chat template."""

    takes_hd_num = False
    stop_ids: tuple[int, ...] = ()
    """None of ours: vLLM ends at what tokenizer and generation_config.json name."""

    def __init__(self, renderer: BaseRenderer[Any], config: ModelConfig) -> None:
        self._renderer = renderer
        self._tokenizer: Any = renderer.get_tokenizer()
        self._params = ChatParams(
            chat_template_kwargs={
                "add_generation_prompt": True,
                "tokenize": is_mistral_tokenizer(self._tokenizer),
                "enable_thinking": False,  # for templates that know it: a caption, no reasoning about it
            }
        )
        self._image_tokens: dict[tuple[tuple[int, int], ...], int] = {}
        self._marks = Marks(self._tokenizer, _template(renderer, config), _placeholders(config))
        try:
            self._prompt(Turn("Is there a chat template?"))
        except Exception as error:  # a template is a program: it may fail in any way
            raise CannotWork(f"{config.model} cannot chat: {error}") from error

    def count_tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(self._marks.neutralise(text), add_special_tokens=False))

    async def prompt_tokens(self, turn: Turn) -> int:
        tokens = len(self._prompt(turn)["prompt_token_ids"])
        return tokens + (await self._image_cost(turn) if turn.images else 0)

    async def rendered(self, turn: Turn) -> EngineInput:
        [rendered] = await self._renderer.render_cmpl_async([self._prompt(turn)])
        return cast(EngineInput, rendered)

    def _prompt(self, turn: Turn) -> Any:
        """Return ids and images; one placeholder stands for each image."""
        content: list[Any] = [{"type": "image_pil", "image_pil": image} for image in turn.images]
        content.append({"type": "text", "text": self._marks.neutralise(turn.prompt)})
        _, prompt = self._renderer.render_messages([{"role": "user", "content": content}], self._params)
        rendered: Any = {**prompt}
        if "prompt_token_ids" not in rendered:
            rendered["prompt_token_ids"] = self._tokenizer.encode(rendered.pop("prompt"), add_special_tokens=False)
        return rendered

    async def _image_cost(self, turn: Turn) -> int:
        """Return the tokens that the images take beyond their placeholders: a matter of their sizes.

        The model's processor says it once for each combination of sizes, of blank images.
        """
        sizes = tuple(image.size for image in turn.images)
        if sizes not in self._image_tokens:
            prompt = self._prompt(Turn("", tuple(Image.new("RGB", size) for size in sizes)))
            placeholders = len(prompt["prompt_token_ids"])
            unbounded = TokenizeParams(max_total_tokens=None)
            # past the cache that the engine mirrors, for the engine never sees these
            [rendered] = await self._renderer.render_cmpl_async([prompt], unbounded, skip_mm_cache=True)
            if len(self._image_tokens) >= SIZES_KNOWN:
                self._image_tokens.clear()
            self._image_tokens[sizes] = len(rendered["prompt_token_ids"]) - placeholders
        return self._image_tokens[sizes]


def _template(renderer: BaseRenderer[Any], config: ModelConfig) -> str:
    """Return the chat template; none where the tokenizer writes turns without one."""
    if not isinstance(renderer, HfRenderer):
        return ""
    return resolve_chat_template(renderer.get_tokenizer(), None, None, model_config=config) or ""


def _placeholders(config: ModelConfig) -> list[str]:
    """Return what stands for images in a prompt, where the model has a spelling for it."""
    model: Any = get_model_cls(config)
    spelled = (model.get_placeholder_str("image", k) for k in range(1, PICTURES + 1))
    return [text for text in spelled if text]
