"""Neutralises special tokens in user text, so that no text can end a turn or insert an image.

Used for chat models that vLLM supports itself. The ShareCaptioner-Video family has its own rule in
`xcomposer2/tokenizer.py`.
"""

import re
from collections.abc import Iterable
from typing import Any

from service.contract.errors import InvalidOption

_SURROGATE = re.compile(r"[\ud800-\udfff]")


class SpecialTokens:
    """The strings that user text must not contain: special tokens, chat template tokens and image placeholders."""

    def __init__(self, tokenizer: Any, chat_template: str, placeholders: Iterable[str]) -> None:
        added = {
            token.content: (number, token) for number, token in getattr(tokenizer, "added_tokens_decoder", {}).items()
        }
        special = {text for text, (_, token) in added.items() if token.special or text in chat_template}
        special = {text for text in {*special, *tokenizer.all_special_tokens} if text.strip()}
        self._tokenizer = tokenizer
        self._ids = {added[text][0] for text in special if text in added} - {tokenizer.unk_token_id}
        longest_first = sorted({*special, *placeholders}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)), re.IGNORECASE) if longest_first else None

    def neutralise(self, text: str) -> str:
        """Return `text` with a space inserted into every special token and lone surrogates replaced by U+FFFD.

        Raises InvalidOption if the tokenizer still finds a special token (it may normalise the text first).
        """
        text = _SURROGATE.sub("\ufffd", text)
        if self._pattern is not None:
            text = self._pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
        if not self._ids.isdisjoint(self._tokenizer.encode(text, add_special_tokens=False)):
            raise InvalidOption("The text contains a special token of this server's model.")
        return text
