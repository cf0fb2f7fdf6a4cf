"""Turns of any chat model that vLLM serves itself, rendered by vLLM's own chat code.

The renderer of vLLM's OpenAI server applies the model's chat template and image placeholders. The model's own
processor handles the images.
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
from workers.models.special_tokens import SpecialTokens

IMAGE_SIZE_CACHE = 4096
"""Number of image size combinations whose token counts are cached."""


def supported_images(config: ModelConfig) -> int | None:
    """Return how many images the model accepts in one turn; None: no limit. Raises CannotWork if it accepts none."""
    if not config.supports_multimodal_inputs:
        raise CannotWork(f"{config.model} ({', '.join(config.architectures)}) takes no images: it cannot caption video")
    limits = MULTIMODAL_REGISTRY.create_processor(config).info.supported_mm_limits
    if "image" not in limits:
        raise CannotWork(f"{config.model} takes {', '.join(limits)} but no images: it cannot caption video")
    return limits["image"]


class ChatTurnRenderer:
    """`TurnRenderer` of any chat model. Raises CannotWork if the model has no usable chat template."""

    takes_hd_num = False
    stop_ids: tuple[int, ...] = ()
    """Empty: vLLM already stops at the ids that the tokenizer and generation_config.json name."""

    def __init__(self, renderer: BaseRenderer[Any], config: ModelConfig, max_images: int) -> None:
        self._renderer = renderer
        self._tokenizer: Any = renderer.get_tokenizer()
        self._params = ChatParams(
            chat_template_kwargs={
                "add_generation_prompt": True,
                "tokenize": is_mistral_tokenizer(self._tokenizer),
                "enable_thinking": False,  # templates that support it then ask for a caption without reasoning
            }
        )
        self._image_tokens: dict[tuple[tuple[int, int], ...], int] = {}
        template, placeholders = _chat_template(renderer, config), _image_placeholders(config, max_images)
        self._special_tokens = SpecialTokens(self._tokenizer, template, placeholders)
        try:
            self._prompt(Turn("Is there a chat template?"))
        except Exception as error:  # a template is a program and can fail in any way
            raise CannotWork(f"{config.model} cannot chat: {error}") from error

    def count_tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(self._special_tokens.neutralise(text), add_special_tokens=False))

    async def prompt_tokens(self, turn: Turn) -> int:
        tokens = len(self._prompt(turn)["prompt_token_ids"])
        return tokens + (await self._extra_image_tokens(turn) if turn.images else 0)

    async def render(self, turn: Turn) -> EngineInput:
        [rendered] = await self._renderer.render_cmpl_async([self._prompt(turn)])
        return cast(EngineInput, rendered)

    def _prompt(self, turn: Turn) -> Any:
        """Return token ids and images, with one placeholder for each image."""
        content: list[Any] = [{"type": "image_pil", "image_pil": image} for image in turn.images]
        content.append({"type": "text", "text": self._special_tokens.neutralise(turn.prompt)})
        _, prompt = self._renderer.render_messages([{"role": "user", "content": content}], self._params)
        rendered: Any = {**prompt}
        if "prompt_token_ids" not in rendered:
            rendered["prompt_token_ids"] = self._tokenizer.encode(rendered.pop("prompt"), add_special_tokens=False)
        return rendered

    async def _extra_image_tokens(self, turn: Turn) -> int:
        """Return the number of image tokens beyond the placeholders. It depends only on the image sizes."""
        sizes = tuple(image.size for image in turn.images)
        if sizes not in self._image_tokens:
            if len(self._image_tokens) >= IMAGE_SIZE_CACHE:
                self._image_tokens.clear()
            self._image_tokens[sizes] = await self._measure_images(sizes)
        return self._image_tokens[sizes]

    async def _measure_images(self, sizes: tuple[tuple[int, int], ...]) -> int:
        """Run the model's processor on blank images of these sizes and count the tokens that it adds."""
        prompt = self._prompt(Turn("", tuple(Image.new("RGB", size) for size in sizes)))
        unexpanded_tokens = len(prompt["prompt_token_ids"])
        unbounded = TokenizeParams(max_total_tokens=None)
        # The engine mirrors the multi-modal cache but never receives these images, so the cache is skipped.
        [rendered] = await self._renderer.render_cmpl_async([prompt], unbounded, skip_mm_cache=True)
        return len(rendered["prompt_token_ids"]) - unexpanded_tokens


def _chat_template(renderer: BaseRenderer[Any], config: ModelConfig) -> str:
    """Return the chat template, or "" if the tokenizer formats chats without one."""
    if not isinstance(renderer, HfRenderer):
        return ""
    return resolve_chat_template(renderer.get_tokenizer(), None, None, model_config=config) or ""


def _image_placeholders(config: ModelConfig, max_images: int) -> list[str]:
    """Return the texts that stand for images in a prompt, if the model defines any."""
    model: Any = get_model_cls(config)
    texts = (model.get_placeholder_str("image", k) for k in range(1, max_images + 1))
    return [text for text in texts if text]
