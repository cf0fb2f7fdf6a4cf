"""Submitted events are written in order, and none after one that failed."""

import asyncio
from typing import Any

import pytest

from service.contract.events import Delta, Event
from service.contract.store.leases import CancelRequested, Lease
from workers.publisher import Publisher


class FakeStore:
    """Keeps the appended texts. `errors`: the next appends raise these, None: one that succeeds."""

    def __init__(self, *errors: Exception | None) -> None:
        self.errors = list(errors)
        self.written: list[tuple[int, str]] = []

    async def append(self, lease: Lease, seq: int, event: Event) -> None:
        await asyncio.sleep(0)
        error = self.errors.pop(0) if self.errors else None
        if error is None or isinstance(error, CancelRequested):
            assert isinstance(event, Delta)
            self.written.append((seq, event.text))
        if error is not None:
            raise error


def publisher(store: Any) -> Publisher:
    return Publisher(store, Lease("job", 1, "token"), 1)


def delta(text: str) -> Delta:
    return Delta(of="caption", text=text)


async def test_submitted_events_are_written_before_the_ones_that_follow() -> None:
    store = FakeStore()
    events = publisher(store)
    events.submit(delta("a"))
    events.submit(delta("b"))
    assert store.written == []
    await events.append(delta("c"))
    assert store.written == [(2, "a"), (3, "b"), (4, "c")]


async def test_nothing_is_written_after_a_failure_until_it_was_raised() -> None:
    store = FakeStore(ValueError("lost"))
    events = publisher(store)
    for text in "ab":
        events.submit(delta(text))
    with pytest.raises(ValueError, match="lost"):
        await events.append(delta("c"))
    assert store.written == []
    await events.append(delta("d"))
    assert store.written == [(2, "d")]


async def test_an_event_that_reports_a_cancellation_keeps_its_position() -> None:
    store = FakeStore(CancelRequested("job"), CancelRequested("job"))
    events = publisher(store)
    events.submit(delta("a"))
    with pytest.raises(CancelRequested):
        await events.append(delta("b"))
    assert store.written == [(2, "a"), (3, "b")]


async def test_flush_waits_for_submitted_events() -> None:
    store = FakeStore(ValueError("lost"))
    events = publisher(store)
    await events.flush()
    events.submit(delta("a"))
    await events.flush()
    assert store.errors == []
