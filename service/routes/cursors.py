"""Cursors of paged lists: the position of the last job of a page, as text."""

import re

from service.contract.errors import InvalidOption
from service.contract.store.store import ListPosition

_CURSOR = re.compile(r"([0-9]{1,17})-(.*)", re.DOTALL)


def cursor_of(position: ListPosition) -> str:
    """Return the cursor of the page that follows this position."""
    return f"{position.created_ms}-{position.job_id}"


def parse_cursor(cursor: str | None) -> ListPosition | None:
    """Return the position that a cursor stands for, None without a cursor. Raises InvalidOption."""
    if not cursor:
        return None
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise InvalidOption("cursor: must be the `cursor` of the previous page")
    return ListPosition(int(match[1]), match[2])
