"""`sharecap edit`: changes to captions after the model: a trigger word, a prefix, a suffix, find and replace.

The edits are recorded in the run's manifest. The text of each row is computed from the model's own caption, which is
kept, by all recorded edits in order. So an edit can be taken back, and a row captioned later gets the same edits.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sharecap_client.datasets.errors import StoreError
from sharecap_client.datasets.rows import Row
from sharecap_client.datasets.store import Store

Edit = dict[str, Any]
Apply = Callable[[str], str]


@dataclass(frozen=True)
class Changed:
    """A row whose text the edits change: its id and both texts."""

    row_id: str
    before: str
    after: str


def trigger(text: str) -> Edit:
    """Put a word before each caption that does not contain it yet, with a comma."""
    return {"kind": "trigger", "text": text}


def prefix(text: str) -> Edit:
    """Put a text before each caption, as it is: give the space too."""
    return {"kind": "prefix", "text": text}


def suffix(text: str) -> Edit:
    """Put a text after each caption, as it is."""
    return {"kind": "suffix", "text": text}


def replace(find: str, replacement: str, regex: bool = False, ignore_case: bool = False) -> Edit:
    """Replace every occurrence of a text or regular expression. Raises StoreError if the expression is not valid."""
    if not find:
        raise StoreError("the text to find is empty")
    edit = {"kind": "replace", "find": find, "replacement": replacement, "regex": regex, "ignore_case": ignore_case}
    try:
        _applier(edit)("")
    except (re.error, IndexError) as error:
        raise StoreError(f"{find!r} → {replacement!r} is not a valid regular expression: {error}") from None
    return edit


def apply(edits: Sequence[Edit], caption: str) -> str:
    """Return the caption after all edits."""
    for edit in edits:
        caption = _applier(edit)(caption)
    return caption


def preview(rows: Iterable[Row], edits: Sequence[Edit]) -> Iterator[Changed]:
    """Yield the rows whose text differs after `edits`, all recorded edits and the new ones, from what it is now."""
    for row in rows:
        after = edited(row, edits)
        if after != row.edited:
            yield Changed(row.id, row.text or "", row.caption or "" if after is None else after)


def record(store: Store, edits: Sequence[Edit]) -> None:
    """Make these the run's edits, and write the texts of all rows. If interrupted, do it again with the same edits."""
    store.manifest.edits = list(edits)
    store.save()
    store.rewrite(lambda row: with_edits(row, edits))


def with_edits(row: Row, edits: Sequence[Edit]) -> Row:
    """Return the row with the text that these edits give."""
    return row.model_copy(update={"edited": edited(row, edits)})


def edited(row: Row, edits: Sequence[Edit]) -> str | None:
    """Return the value of the row's field `edited`: None if nothing changes the model's caption."""
    after = apply(edits, row.caption) if row.caption is not None else None
    return None if after == row.caption else after


def describe(edit: Edit) -> str:
    """Return an edit in words."""
    details = (f"{name} {value!r}" for name, value in edit.items() if name != "kind" and value is not False)
    return f"{edit['kind']}: {', '.join(details)}"


def _applier(edit: Edit) -> Apply:
    values = {name: value for name, value in edit.items() if name != "kind"}
    return KINDS[edit["kind"]](**values)


def _trigger(text: str) -> Apply:
    word = re.compile(rf"(?<!\w){re.escape(text)}(?!\w)")
    return lambda caption: caption if word.search(caption) else f"{text}, {caption}"


def _prefix(text: str) -> Apply:
    return lambda caption: text + caption


def _suffix(text: str) -> Apply:
    return lambda caption: caption + text


def _replace(find: str, replacement: str, regex: bool, ignore_case: bool) -> Apply:
    expression = re.compile(find if regex else re.escape(find), re.IGNORECASE if ignore_case else 0)
    return lambda caption: expression.sub(replacement if regex else lambda match: replacement, caption)


KINDS: dict[str, Callable[..., Apply]] = {
    "trigger": _trigger,
    "prefix": _prefix,
    "suffix": _suffix,
    "replace": _replace,
}
"""Kind of an edit -> what makes the function that applies it."""
