"""Chat messages -> one prompt, for vLLM's own OpenAI server: the ids that `tokenizer.turn_ids` gives for the same turn.

`vllm serve` renders messages with the tokenizer's chat template. Two things a template cannot do are done here: no
message may spell a chat mark, and `<s>`, which has an id but no spelling, stands first.
"""

from typing import Any

from vllm.renderers.hf import HfRenderer
from vllm.renderers.params import ChatParams

from workers.xcomposer2.tokenizer import neutralise


class XComposer2Renderer(HfRenderer):
    """vLLM's renderer for `tokenizer_mode="xcomposer2"`."""

    def render_messages(self, messages: list[Any], params: ChatParams) -> tuple[list[Any], Any]:
        conversation, prompt = super().render_messages([_neutral(message) for message in messages], params)
        return conversation, self._as_ids(prompt)

    async def render_messages_async(self, messages: list[Any], params: ChatParams) -> tuple[list[Any], Any]:
        neutral = [_neutral(message) for message in messages]
        conversation, prompt = await super().render_messages_async(neutral, params)
        return conversation, self._as_ids(prompt)

    def _as_ids(self, prompt: Any) -> Any:
        """Return the prompt with `prompt_token_ids` for its text, the image's placeholder among them."""
        tokenizer: Any = self.get_tokenizer()  # XComposer2Tokenizer
        text = prompt.pop("prompt", None)
        ids = prompt["prompt_token_ids"] if text is None else tokenizer.encode(text, add_special_tokens=False)
        return {**prompt, "prompt_token_ids": [tokenizer.bos_token_id, *ids]}


def _neutral(message: Any) -> Any:
    """Return an OpenAI message that spells no mark, in its role neither; pictures and other parts as they are."""
    content = message.get("content") or []
    parts = [content] if isinstance(content, str) else content
    return {**message, "role": neutralise(message["role"]), "content": [_neutral_part(part) for part in parts]}


def _neutral_part(part: Any) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": neutralise(part)}
    return {name: neutralise(value) if isinstance(value, str) else value for name, value in part.items()}
