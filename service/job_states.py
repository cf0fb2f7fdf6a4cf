"""The current states of jobs, for routes that show a job. `fold` defines a state; this module avoids repeating it.

Events never change, so the state that was computed for an earlier request is still the state after those events. Only
the events after it are read and added. Every call also reads the job's record and the last event that was added. If
either differs, because the job was deleted or the Redis server has lost its last writes, all events are read again.
"""

import time
from collections import OrderedDict
from dataclasses import dataclass, field

from service.contract.events import advance, initial_state
from service.contract.jobs import JobState, Record
from service.contract.store.entries import Entry, parsing
from service.contract.store.store import History, Store

KEPT_CHARS = 8_000_000
"""Characters of records and events from which the kept states were computed. A state takes a few bytes for each."""
LARGEST_CHARS = KEPT_CHARS // 8
"""A state that was computed from more is not kept."""
STATE_CHARS = 2_000
"""What each state counts in addition."""
KEPT_S = 60.0
"""A state is discarded if it was not used for this long."""


@dataclass(frozen=True)
class _Snapshot:
    """The state of the job with this record after the event `last`."""

    record: str
    last: Entry
    state: JobState
    chars: int
    """The size of the texts that it was computed from."""
    used_at: float = field(default_factory=time.monotonic)

    def continues_in(self, history: History) -> bool:
        """Return whether the job still has this record and `last`, with which `history` starts."""
        return (history.record, history.first) == (self.record, self.last)

    def advance(self, history: History) -> tuple[JobState, int]:
        """Return the state after the events that follow `last`, and the size of the texts of all events so far."""
        later = history.after(self.last.seq)
        return advance(self.state, later.parse()), self.chars + later.chars


class JobStates:
    """Computes states and keeps those that were used recently."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._snapshots: OrderedDict[str, _Snapshot] = OrderedDict()  # least recently used first
        self._chars = 0

    async def job(self, job_id: str) -> JobState | None:
        """Return the job's current state, None for an unknown job. Callers must not change it.

        Raises UnreadableJob if the stored data is malformed.
        """
        snapshot = self._snapshots.get(job_id)
        history = await self.store.history(job_id, snapshot.last.seq if snapshot else 1)
        if snapshot and history and not snapshot.continues_in(history):
            snapshot, history = None, await self.store.history(job_id)
        self.forget(job_id)
        if history is None:
            return None
        with parsing(job_id):
            state, chars = snapshot.advance(history) if snapshot else _compute(history)
        if history.last is not None and chars <= LARGEST_CHARS:
            self._keep(job_id, _Snapshot(history.record, history.last, state, chars))
        return state

    def forget(self, job_id: str) -> None:
        """Discard what is kept of a job."""
        if snapshot := self._snapshots.pop(job_id, None):
            self._chars -= snapshot.chars

    def _keep(self, job_id: str, snapshot: _Snapshot) -> None:
        self.forget(job_id)  # a concurrent request may have kept a state in the meantime
        self._snapshots[job_id] = snapshot
        self._chars += snapshot.chars
        for oldest_id, oldest in list(self._snapshots.items()):
            if self._chars <= KEPT_CHARS and snapshot.used_at - oldest.used_at <= KEPT_S:
                break
            self.forget(oldest_id)


def _compute(history: History) -> tuple[JobState, int]:
    """Return the state after all events, and the size of the texts that it was computed from."""
    state = advance(initial_state(Record.model_validate_json(history.record)), history.parse())
    return state, STATE_CHARS + len(history.record) + history.chars
