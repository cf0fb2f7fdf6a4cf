"""The invariants of a job's event stream, which must hold after any fault."""

from collections import Counter
from dataclasses import dataclass

from service.contract.events import (
    Caption,
    Completed,
    Delta,
    Differential,
    Failed,
    Keyframes,
    Queued,
    Started,
    StoredEvent,
    fold,
)
from service.contract.jobs import JobStatus
from service.contract.store.store import Store
from tests.soak.cluster import InterruptedJob


@dataclass
class History:
    """One accepted job with all its stored events; `keyframes` is the number of keyframes that its video has."""

    job_id: str
    keyframes: int
    events: list[StoredEvent]
    status: JobStatus

    @property
    def outcome(self) -> str:
        """The code of the error if the job failed, otherwise the type of its final event."""
        event = self.events[-1].event
        return event.error.code if isinstance(event, Failed) else event.type

    @property
    def attempts(self) -> int:
        return sum(isinstance(stored.event, Started) for stored in self.events)


async def read_histories(store: Store, accepted: dict[str, int]) -> list[History]:
    """Return the histories of all accepted jobs; `accepted` maps each job id to its number of keyframes."""
    histories = []
    for job_id, keyframes in accepted.items():
        record, known = await store.record(job_id), await store.kind_and_status(job_id)
        assert record is not None and known is not None, f"{job_id} is lost"
        events = [stored async for stored in store.events(job_id)]
        assert fold(record, events).status is known.status, f"{job_id}: record and stream disagree"
        histories.append(History(job_id, keyframes, events, known.status))
    return histories


def check(histories: list[History]) -> None:
    """Raise AssertionError with all violated invariants of all jobs."""
    violations = {history.job_id: problems for history in histories if (problems := problems_of(history))}
    assert not violations, violations


def problems_of(history: History) -> list[str]:
    """Return the invariants that the history violates."""
    events = [stored.event for stored in history.events]
    keyframes = [k for e in events if isinstance(e, Keyframes) for k in e.keyframes]
    captioned = [e.keyframe for e in events if isinstance(e, Differential)]
    rules = {
        "a position is missing or repeated": [s.seq for s in history.events] == list(range(1, len(events) + 1)),
        "timestamps are not in order": [s.at for s in history.events] == sorted(s.at for s in history.events),
        "`queued` is not exactly the first event": isinstance(events[0], Queued)
        and Queued not in map(type, events[1:]),
        "not exactly one last event": [s.last for s in history.events] == [False] * (len(events) - 1) + [True],
        "attempts are misnumbered": [e.attempt for e in events if isinstance(e, Started)]
        == list(range(1, history.attempts + 1)),
        "keyframes are missing or repeated": [k.index for k in keyframes] == list(range(len(keyframes))),
        "keyframes are out of order": [k.time_s for k in keyframes] == sorted({k.time_s for k in keyframes}),
        "a keyframe was captioned twice, skipped, or out of order": captioned == list(range(len(captioned))),
        "a differential has no keyframe": len(captioned) <= len(keyframes),
        "more than one caption": Counter(map(type, events))[Caption] <= 1,
        "deltas do not add up to the finished texts": _deltas_add_up(events),
    }
    if isinstance(events[-1], Completed):
        rules["a keyframe is missing"] = len(keyframes) == len(captioned) == history.keyframes
        rules["the caption is missing"] = any(isinstance(e, Caption) for e in events)
    return [text for text, holds in rules.items() if not holds]


def _deltas_add_up(events: list[object]) -> bool:
    """Whether each finished text equals the deltas since the last finished text or the last `started`."""
    text = ""
    for event in events:
        match event:
            case Started():
                text = ""
            case Delta():
                text += event.text
            case Differential() | Caption():
                if text != event.text:
                    return False
                text = ""
    return True


def recoveries_s(histories: list[History], interrupted: list[InterruptedJob]) -> list[float]:
    """Return, in ascending order, the seconds from each kill of a job's worker to the job's next event.

    A kill without a later event is left out: the job had already ended. If several workers of a job are killed before
    its next event, only the last kill counts.
    """
    recoveries = []
    events_ms = {history.job_id: [stored.at.timestamp() * 1000 for stored in history.events] for history in histories}
    for index, job in enumerate(interrupted):
        later_ms = [at_ms for at_ms in events_ms[job.job_id] if at_ms > job.killed_ms]
        next_kills_ms = [other.killed_ms for other in interrupted[index + 1 :] if other.job_id == job.job_id]
        if later_ms and not (next_kills_ms and next_kills_ms[0] < later_ms[0]):
            recoveries.append((later_ms[0] - job.killed_ms) / 1000)
    return sorted(recoveries)


def quantile(values: list[float], share: float) -> float:
    """Return the value that a fraction `share` of the sorted values does not exceed; 0 without values."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0
