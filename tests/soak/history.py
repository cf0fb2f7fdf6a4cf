"""What must hold of every job's stream, whatever has happened: checked by one function."""

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
from tests.soak.cluster import Held


@dataclass
class Story:
    """One accepted job, all that its stream says, and how many keyframes its video has."""

    job_id: str
    keyframes: int
    events: list[StoredEvent]
    status: JobStatus

    @property
    def last(self) -> str:
        event = self.events[-1].event
        return event.error.code if isinstance(event, Failed) else event.type

    @property
    def attempts(self) -> int:
        return sum(isinstance(stored.event, Started) for stored in self.events)


async def read(store: Store, accepted: dict[str, int]) -> list[Story]:
    """Return the stories of all accepted jobs; `accepted` maps each to its number of keyframes."""
    stories = []
    for job_id, keyframes in accepted.items():
        record, known = await store.record(job_id), await store.kind_and_status(job_id)
        assert record is not None and known is not None, f"{job_id} is lost"
        events = [stored async for stored in store.events(job_id)]
        assert fold(record, events).status is known[1], f"{job_id}: record and stream disagree"
        stories.append(Story(job_id, keyframes, events, known[1]))
    return stories


def check(stories: list[Story]) -> None:
    """Raise AssertionError with all that is wrong with any of the streams."""
    wrong = {story.job_id: problems for story in stories if (problems := problems_of(story))}
    assert not wrong, wrong


def problems_of(story: Story) -> list[str]:
    """Return what is wrong with a stream, in words."""
    events = [stored.event for stored in story.events]
    keyframes = [k for e in events if isinstance(e, Keyframes) for k in e.keyframes]
    told = [e.keyframe for e in events if isinstance(e, Differential)]
    rules = {
        "a place is missing or doubled": [s.seq for s in story.events] == list(range(1, len(events) + 1)),
        "time goes backwards": [s.at for s in story.events] == sorted(s.at for s in story.events),
        "it does not begin with `queued`": isinstance(events[0], Queued) and Queued not in map(type, events[1:]),
        "not exactly one last event": [s.last for s in story.events] == [False] * (len(events) - 1) + [True],
        "attempts are misnumbered": [e.attempt for e in events if isinstance(e, Started)]
        == list(range(1, story.attempts + 1)),
        "keyframes are missing or doubled": [k.index for k in keyframes] == list(range(len(keyframes))),
        "keyframes are out of order": [k.time_s for k in keyframes] == sorted({k.time_s for k in keyframes}),
        "a keyframe was captioned twice, not at all, or out of order": told == list(range(len(told))),
        "a differential is of no keyframe": len(told) <= len(keyframes),
        "more than one caption": Counter(map(type, events))[Caption] <= 1,
        "deltas do not add up": _deltas_add_up(events),
    }
    if isinstance(events[-1], Completed):
        rules["a keyframe is missing"] = len(keyframes) == len(told) == story.keyframes
        rules["no caption"] = any(isinstance(e, Caption) for e in events)
    return [text for text, holds in rules.items() if not holds]


def _deltas_add_up(events: list[object]) -> bool:
    """Whether the deltas since the last start, or the last finished text, are what each finished text says."""
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


def recoveries_s(stories: list[Story], held: list[Held]) -> list[float]:
    """Return, for each job that lost its worker, the seconds until its next event.

    A job whose last event is older than the kill had ended by then; one that lost several workers in a row counts
    from the last of them.
    """
    found = []
    events = {story.job_id: [stored.at.timestamp() * 1000 for stored in story.events] for story in stories}
    for place, lost in enumerate(held):
        later = [at for at in events[lost.job_id] if at > lost.at_ms]
        again = [h.at_ms for h in held[place + 1 :] if h.job_id == lost.job_id]
        if later and not (again and again[0] < later[0]):
            found.append((later[0] - lost.at_ms) / 1000)
    return sorted(found)


def quantile(values: list[float], share: float) -> float:
    """Return the value that `share` of the sorted values do not exceed."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0
