"""User text -> text that is no more than text to any tokenizer: it can spell a chat mark, but never become one.

For chat models that vLLM brings itself; the ShareCaptioner-Video family has its own rule in `xcomposer2/tokenizer.py`.
"""

import re
from collections.abc import Iterable
from typing import Any

from service.contract.errors import InvalidOption

_SURROGATE = re.compile(r"[\ud800-\udfff]")


class Marks:
    """What text must not spell: special tokens, tokens that the chat template writes, image placeholders."""

    def __init__(self, tokenizer: Any, template: str, placeholders: Iterable[str]) -> None:
        added = {
            token.content: (number, token) for number, token in getattr(tokenizer, "added_tokens_decoder", {}).items()
        }
        marks = {text for text, (_, token) in added.items() if token.special or text in template}
        marks = {text for text in {*marks, *tokenizer.all_special_tokens} if text.strip()}
        self._tokenizer = tokenizer
        self._ids = {added[text][0] for text in marks if text in added} - {tokenizer.unk_token_id}
        spelled = sorted({*marks, *placeholders}, key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, spelled)), re.IGNORECASE) if spelled else None

    def neutralise(self, text: str) -> str:
        """Return `text` with every mark broken by a space, and lone surrogates as U+FFFD.

        Raises InvalidOption for text that the tokenizer takes for a mark even so (it may normalise before it looks).
        """
        text = _SURROGATE.sub("\ufffd", text)
        if self._spelled is not None:
            text = self._spelled.sub(lambda mark: f"{mark[0][0]} {mark[0][1:]}", text)
        if not self._ids.isdisjoint(self._tokenizer.encode(text, add_special_tokens=False)):
            raise InvalidOption("The text spells a special token of this server's model.")
        return text
