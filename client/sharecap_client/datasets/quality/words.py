"""Words of a caption and their classes.

The tagger is TextBlob's, from the Pattern library: a lexicon and rules, as in Brill's tagger. Its data is part of the
package, so nothing is downloaded. It knows English only.
"""

import re
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

CLASSES = {
    "noun": ("NN",),
    "verb": ("VB", "MD"),
    "adjective": ("JJ",),
    "adverb": ("RB", "WRB"),
    "numeral": ("CD",),
    "preposition": ("IN", "TO"),
}
"""Word class -> beginnings of its Penn Treebank tags. `IN` also marks conjunctions such as "while"."""
OTHER = "other"

_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_CLASS_OF = {tag: name for name, tags in CLASSES.items() for tag in tags}


def words(text: str) -> list[str]:
    """Return the words in lower case, without punctuation."""
    return [word.lower() for word in _WORD.findall(text)]


class Tagger:
    """Counts the word classes of texts."""

    def __init__(self) -> None:
        from textblob.en import tag  # noqa: PLC0415  (takes a third of a second)

        self._tag: Any = tag
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # TextBlob does not close the file of its lexicon
            self._tag("A word.")

    def classes(self, text: str) -> Counter[str]:
        """Return how many words of each class a text has."""
        return Counter(_class_of(tag) for word, tag in self._tagged(text) if _WORD.search(word))

    def _tagged(self, text: str) -> Iterator[tuple[str, str]]:
        if text.strip():
            yield from self._tag(text)


def _class_of(tag: str) -> str:
    return _CLASS_OF.get(tag) or _CLASS_OF.get(tag[:2]) or OTHER
