"""Stored events as entries of a job's Redis stream, and `parsing`, which reports stored data that is malformed."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from service.contract.errors import UnreadableJob
from service.contract.events import EVENT, FINAL_EVENT_TYPES, Event, StoredEvent

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored event that is not parsed: `data` is its JSON text, which clients receive byte for byte."""

    seq: int
    type: str
    data: str
    at_ms: int

    @property
    def last(self) -> bool:
        """Return whether this is the job's final event."""
        return self.type in FINAL_EVENT_TYPES

    def parse(self) -> StoredEvent:
        event = EVENT.validate_python({"type": self.type, **json.loads(self.data)})
        return StoredEvent(seq=self.seq, at=datetime.fromtimestamp(self.at_ms / 1000, UTC), event=event)


def entry_of(entry_id: str, fields: dict[str, str]) -> Entry:
    """Return the entry that Redis reports as `entry_id` and `fields`."""
    return Entry(int(entry_id.split("-", maxsplit=1)[0]), fields["type"], fields["data"], int(fields["at"]))


@contextmanager
def parsing(job_id: str) -> Iterator[None]:
    """Log a failure to parse the job's stored data in this context. Raises UnreadableJob instead."""
    try:
        yield
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        log.warning("%s: the stored data is unreadable: %s: %s", job_id, type(error).__name__, reason)
        raise UnreadableJob from error


def event_json(event: Event) -> str:
    """Return the JSON text that is stored for `event`, on one line."""
    return json.dumps(event.data(), ensure_ascii=False, separators=(",", ":"))
