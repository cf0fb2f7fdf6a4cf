"""Renders chat messages for vLLM's own OpenAI server, to the same token ids as `tokenizer.turn_ids`.

`vllm serve` applies the tokenizer's chat template. This module adds two steps that a template cannot do: it neutralises
special tokens in the messages, and it prepends the id of `<s>`, which no text encodes to.
"""

from typing import Any

from vllm.renderers.hf import HfRenderer
from vllm.renderers.params import ChatParams

from workers.xcomposer2.tokenizer import neutralise


class XComposer2Renderer(HfRenderer):
    """The renderer that vLLM uses when `tokenizer_mode="xcomposer2"`."""

    def render_messages(self, messages: list[Any], params: ChatParams) -> tuple[list[Any], Any]:
        conversation, prompt = super().render_messages([_neutralised(message) for message in messages], params)
        return conversation, self._as_ids(prompt)

    async def render_messages_async(self, messages: list[Any], params: ChatParams) -> tuple[list[Any], Any]:
        messages = [_neutralised(message) for message in messages]
        conversation, prompt = await super().render_messages_async(messages, params)
        return conversation, self._as_ids(prompt)

    def _as_ids(self, prompt: Any) -> Any:
        """Return the prompt with its text encoded as `prompt_token_ids`, including the image placeholder."""
        tokenizer: Any = self.get_tokenizer()  # XComposer2Tokenizer
        text = prompt.pop("prompt", None)
        ids = prompt["prompt_token_ids"] if text is None else tokenizer.encode(text, add_special_tokens=False)
        return {**prompt, "prompt_token_ids": [tokenizer.bos_token_id, *ids]}


def _neutralised(message: Any) -> Any:
    """Return an OpenAI message with special tokens neutralised in its role and texts; other parts are unchanged."""
    content = message.get("content") or []
    parts = [content] if isinstance(content, str) else content
    return {**message, "role": neutralise(message["role"]), "content": [_neutralised_part(part) for part in parts]}


def _neutralised_part(part: Any) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": neutralise(part)}
    return {name: neutralise(value) if isinstance(value, str) else value for name, value in part.items()}
