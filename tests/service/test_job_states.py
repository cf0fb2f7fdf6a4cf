"""States that are continued from an earlier request are the states that a replay of all events gives."""

import random
from collections.abc import Callable

import pytest
from redis.asyncio import Redis

from service import job_states
from service.contract.errors import UnreadableJob
from service.contract.events import Caption, Delta, Differential, Event, Keyframes, Started, Video
from service.contract.jobs import Keyframe
from service.contract.store.keys import events_key, job_key
from service.contract.store.leases import Lease
from service.contract.store.store import Store
from service.job_states import JobStates
from tests.service.contract.store.sample_jobs import claim, create_job
from tests.service.scripted import ScriptedWorker, video_events

STEPS = 60
MAKERS: tuple[Callable[[int], Event], ...] = (
    lambda n: Started(attempt=n),
    lambda n: Video(duration_s=n, width=160, height=120, fps=10, interval_s=2, bytes=n, sha256="0" * 64),
    lambda n: Keyframes(keyframes=[Keyframe(index=n, time_s=n), Keyframe(index=n + 1, time_s=n)], complete=False),
    lambda n: Delta(of="caption", text=str(n)),
    lambda n: Differential(keyframe=n, time_s=n, text=f"Bild {n} — 正方形"),
    lambda n: Caption(text=str(n), finish_reason="length", keyframes_seen=n),
)


class CountingStore(Store):
    """Counts the events that it reads."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis)
        self.read = 0

    async def history(self, job_id: str, first: int = 1):  # type: ignore[no-untyped-def]
        history = await super().history(job_id, first)
        self.read += len(history.events) if history else 0
        return history


async def lose_events(store: Store, lease: Lease, length: int) -> None:
    """Cut the stream off after `length` events, as if the server had lost its last writes."""
    rows = await store.redis.xrange(events_key(lease.job_id))
    await store.redis.delete(events_key(lease.job_id))
    for entry_id, fields in rows[:length]:
        await store.redis.xadd(events_key(lease.job_id), fields, id=entry_id)


@pytest.mark.parametrize("seed", range(4))
async def test_any_history_gives_the_state_of_a_replay(store: Store, seed: int) -> None:
    rng = random.Random(seed)
    worker, states = ScriptedWorker(store), JobStates(store)
    leases = [await worker.claim(await create_job(store)) for _ in range(2)]
    for _ in range(STEPS):
        lease = rng.choice(leases)
        if rng.random() < 0.05:
            length = rng.randint(0, worker.positions[lease.job_id])
            await lose_events(store, lease, length)
            worker.positions[lease.job_id] = length
        events = [rng.choice(MAKERS)(rng.randint(1, 40)) for _ in range(rng.randint(0, 3))]
        await worker.append(lease, *events)
        if rng.random() < 0.7:
            assert await states.job(lease.job_id) == await store.job(lease.job_id)
    for lease in leases:
        assert await states.job(lease.job_id) == await store.job(lease.job_id)


async def test_only_new_events_are_read(store: Store) -> None:
    counting, worker = CountingStore(store.redis), ScriptedWorker(store)
    states = JobStates(counting)
    lease = await worker.claim(await create_job(store))
    await worker.append(lease, *(Differential(keyframe=n, time_s=n, text="A fox.") for n in range(30)))
    first = await states.job(lease.job_id)
    counting.read = 0
    await worker.append(lease, Differential(keyframe=30, time_s=30, text="It runs."))
    second = await states.job(lease.job_id)
    assert counting.read == 2, "the last event of the kept state, and the new one"
    assert first and second and (len(first.differentials), len(second.differentials)) == (30, 31)


async def test_a_deleted_or_changed_job_is_not_shown_from_memory(store: Store) -> None:
    states, job_id = JobStates(store), await create_job(store)
    assert await states.job(job_id)
    await store.redis.hset(job_key(job_id), "record", "{")
    with pytest.raises(UnreadableJob):
        await states.job(job_id)
    await store.delete(job_id)
    assert await states.job(job_id) is None


async def test_a_malformed_new_event_is_reported_each_time(store: Store) -> None:
    states, job_id = JobStates(store), await create_job(store)
    assert await states.job(job_id)
    await store.redis.xadd(events_key(job_id), {"type": "started", "data": "[1]", "at": "1"}, id="2-0")
    for _ in range(2):
        with pytest.raises(UnreadableJob):
            await states.job(job_id)


async def test_memory_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_states, "KEPT_CHARS", 3 * (job_states.STATE_CHARS + 2000))
    counting = CountingStore(store.redis)
    states = JobStates(counting)
    jobs = []
    for _ in range(8):
        lease = await claim(store, await create_job(store))
        for seq, event in enumerate(video_events(lease.job_id), 2):
            await store.append(lease, seq, event)
        jobs.append(lease.job_id)
    for _ in range(2):
        for job_id in jobs:
            assert await states.job(job_id) == await store.job(job_id)
    counting.read = 0
    await states.job(jobs[-1])
    assert counting.read == 1, "the newest state is kept"
    await states.job(jobs[0])
    assert counting.read > 5, "the oldest is not"


async def test_an_unused_state_is_discarded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_states, "KEPT_S", 0.0)
    counting = CountingStore(store.redis)
    states = JobStates(counting)
    first, second = await create_job(store), await create_job(store)
    lease = await claim(store, first)
    await store.append(lease, 2, Started(attempt=1))
    await states.job(first)
    await states.job(second)
    monkeypatch.setattr(job_states, "KEPT_S", 60.0)
    counting.read = 0
    await states.job(first)
    assert counting.read == 2, "all events are read again"
    await states.job(first)
    assert counting.read == 3, "now only the last one"
