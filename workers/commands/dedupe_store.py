"""`sharecap dedupe RUN`: the same filtering on the captions of a run. Dropped rows stay, marked as excluded."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from sharecap_client.datasets.rows import Row
from sharecap_client.datasets.store import Store

MARK = "says the same as "
"""Begins the reason of rows that this command has excluded; a later run of it decides about them anew."""

Admit = Callable[[list[str]], tuple[Sequence[bool], Sequence[int], Sequence[float]]]
"""Filters captions: for each, whether it is kept, the number of the most similar kept one, and their cosine."""


def filter_store(directory: Path, admit: Admit, block: int, advance: Callable[[int], Any]) -> tuple[int, int]:
    """Exclude rows whose caption says the same as an earlier one. Returns the number of captions and of kept ones.

    The model's own captions are compared, without edits. Raises StoreError.
    """
    with Store.open(directory).locked() as store:
        kept: list[str] = []
        reasons: dict[str, str] = {}
        rows = candidates(store)
        while group := list(islice(rows, block)):
            results = admit([row.caption or "" for row in group])
            for row, keep, nearest, cosine in zip(group, *results, strict=True):
                if keep:
                    kept.append(row.id)
                else:
                    reasons[row.id] = f"{MARK}{kept[nearest]} (cosine {cosine:.3f})"
            advance(len(group))
        store.rewrite(lambda row: _marked(row, reasons.get(row.id)))
    return len(kept) + len(reasons), len(kept)


def candidates(store: Store) -> Iterator[Row]:
    """Yield the rows with a caption, except those that were excluded for another reason."""
    for row in store.rows(("caption", "excluded")):
        if row.caption and (row.excluded is None or row.excluded.startswith(MARK)):
            yield row


def _marked(row: Row, reason: str | None) -> Row:
    if reason is None and (row.excluded is None or not row.excluded.startswith(MARK)):
        return row
    return row.model_copy(update={"excluded": reason})
