"""Turns: API keys take turns, lines drop ended jobs, and a worker without room leaves a job in its line."""

import pytest

from service.contract.jobs import JobKind, RecaptionOptions, Source
from service.contract.store import turns
from service.contract.store.keys import QUEUED, line_key, turns_key
from service.contract.store.store import Store
from service.contract.store.turns import FETCH, queue_of
from tests.service.contract.store.sample_jobs import claim, expire_and_reap, new_record

ALL_ROOM: dict[str, list[str]] = {"recaption": [], "clip": [], FETCH: [], "video": []}


async def queue(store: Store, owner: str | None, count: int = 1, **changes: object) -> list[str]:
    """Create jobs of this owner and return their ids."""
    records = [new_record(owner=owner, **changes) for _ in range(count)]
    for record in records:
        assert await store.create(record)
    return [record.id for record in records]


async def next_jobs(store: Store, woken: list[str]) -> list[str | None]:
    """Handle the wake-ups as a worker does, and return the ids of the claimed jobs."""
    claimed = []
    for woken_id in woken:
        claimed.append(await store.next_job(ALL_ROOM, woken_id))
        if claimed[-1] is not None:
            await claim(store, claimed[-1])
    return claimed


async def test_keys_take_turns(store: Store) -> None:
    greedy = await queue(store, "greedy", 5)
    patient = await queue(store, "patient", 2)
    other = await queue(store, "other")
    order = await next_jobs(store, [*greedy, *patient, *other])
    owners = [record.owner for record, _ in await store.records([job_id for job_id in order if job_id])]
    rounds = [sorted(str(owner) for owner in part) for part in (owners[:3], owners[3:5], owners[5:])]
    assert rounds == [["greedy", "other", "patient"], ["greedy", "patient"], ["greedy", "greedy", "greedy"]]
    assert sorted(job_id for job_id in order if job_id) == sorted([*greedy, *patient, *other]), "each exactly once"
    assert not await store.redis.exists(turns_key("video"))


async def test_jobs_of_one_key_start_as_they_are_woken(store: Store) -> None:
    jobs = await queue(store, None, 4)
    assert await next_jobs(store, jobs[::-1]) == jobs[::-1]


async def test_a_used_wake_up_starts_the_job_that_lost_its_own(store: Store) -> None:
    greedy, patient = await queue(store, "greedy", 2), await queue(store, "patient")
    assert await store.next_job(ALL_ROOM, greedy[0]) == greedy[0]
    assert await store.next_job(ALL_ROOM, greedy[1]) == patient[0]
    await claim(store, patient[0])
    assert await store.next_job(ALL_ROOM, patient[0]) == greedy[1]
    await claim(store, greedy[1])
    assert await store.next_job(ALL_ROOM, greedy[1]) is None


async def test_a_resumed_job_needs_no_turn(store: Store) -> None:
    await queue(store, "greedy", 3)
    [resumed] = await queue(store, "patient")
    await store.next_job(ALL_ROOM, resumed)
    await claim(store, resumed)
    await expire_and_reap(store, resumed)
    assert await store.next_job({}, resumed) == resumed, "also without room for new jobs"


async def test_ended_jobs_lose_their_turn(store: Store) -> None:
    cancelled, deleted, waiting = await queue(store, "greedy", 3)
    await store.cancel(cancelled)
    await store.delete(deleted)
    assert await next_jobs(store, [cancelled, waiting]) == [waiting, None]
    assert await store.redis.keys("sharecap:line:*") == []


async def test_a_key_without_room_is_passed_over(store: Store) -> None:
    greedy, patient = await queue(store, "greedy", 2), await queue(store, "patient")
    room = {"video": ["greedy"]}
    assert await store.next_job(room, greedy[0]) == patient[0]
    parked_at = await store.redis.zscore(QUEUED, greedy[0])
    assert await store.next_job(room, greedy[0]) is None
    assert await store.redis.zscore(QUEUED, greedy[0]) > parked_at + 20_000, "reapers do not wake it again and again"
    assert await store.redis.zscore(line_key("video", "greedy"), greedy[0]), "it keeps its place in the line"
    assert await store.next_job({"recaption": [], FETCH: []}, greedy[1]) is None, "without room for videos, none starts"


async def test_without_a_wake_up_only_jobs_that_have_waited_are_started(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    [job_id] = await queue(store, "patient")
    assert await store.next_job(ALL_ROOM) is None
    monkeypatch.setattr(turns, "REWAKE_AFTER_S", 0.0)
    assert await store.next_job({"recaption": []}) is None
    assert await store.next_job(ALL_ROOM) == job_id


async def test_queues_have_separate_turns(store: Store) -> None:
    text = {"kind": JobKind.RECAPTION, "options": RecaptionOptions(prompt="A fox"), "source": None}
    [video], [recaption] = await queue(store, "greedy"), await queue(store, "greedy", **text)
    [url] = await queue(store, "greedy", source=Source(url="https://example.com/a.mp4"))
    assert await next_jobs(store, [recaption, url, video]) == [recaption, url, video]


def test_the_queue_of_a_job() -> None:
    assert queue_of(new_record()) == "video"
    assert queue_of(new_record(source=Source(url="https://example.com/a.mp4"))) == FETCH
    text = new_record(kind=JobKind.RECAPTION, options=RecaptionOptions(prompt="A fox"), source=None)
    assert queue_of(text) == "recaption"
