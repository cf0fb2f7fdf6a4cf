"""Leases: claiming, fencing, repeated writes, strikes and reaping."""

import asyncio

import pytest

from service.contract.errors import DecodeFailed
from service.contract.events import (
    Caption,
    Completed,
    Delta,
    Differential,
    Failed,
    Started,
)
from service.contract.jobs import (
    JobKind,
    JobStatus,
    Timings,
    Usage,
    new_job_id,
)
from service.contract.store.keys import ALIVE, LEASES, QUEUED, events_key, job_key
from service.contract.store.leases import (
    LEASE_S,
    MAX_STALLS,
    MAX_STRIKES,
    OUTAGE_S,
    REWAKE_AFTER_S,
    Fault,
    Fenced,
    StreamTruncated,
    new_token,
)
from service.contract.store.store import Store
from tests.service.contract.store.sample_jobs import (
    claim,
    create_job,
    event_types,
    expire_and_reap,
    expire_lease,
    new_record,
)


async def now_ms(store: Store) -> int:
    seconds, micros = await store.redis.time()
    return int(seconds * 1000 + micros // 1000)


async def test_only_one_of_many_claims_gets_the_job(store: Store) -> None:
    job_id = await create_job(store)
    leases = await asyncio.gather(*(store.claim(job_id) for _ in range(20)))
    assert [lease.epoch for lease in leases if lease] == [1]
    assert await store.redis.zrange(QUEUED, 0, -1) == []
    assert await store.redis.zrange(LEASES, 0, -1) == [job_id]


async def test_unknown_and_ended_jobs_cannot_be_claimed(store: Store) -> None:
    assert await store.claim(new_job_id()) is None
    job_id = await create_job(store)
    assert await store.cancel(job_id) is JobStatus.CANCELLED
    assert await store.claim(job_id) is None


async def test_a_repeated_append_has_no_effect(store: Store) -> None:
    job_id = await create_job(store)
    lease = await claim(store, job_id)
    for _ in range(3):
        await store.append(lease, 2, Started(attempt=1))
    assert await event_types(store, job_id) == [(1, "queued"), (2, "started")]
    assert await store.kind_and_status(job_id) == (JobKind.VIDEO, JobStatus.RUNNING)


async def test_an_event_after_a_gap_is_refused(store: Store) -> None:
    job_id = await create_job(store)
    lease = await claim(store, job_id)
    with pytest.raises(StreamTruncated):
        await store.append(lease, 3, Started(attempt=1))
    assert await event_types(store, job_id) == [(1, "queued")]


async def test_a_worker_that_lost_its_lease_is_fenced(store: Store) -> None:
    job_id = await create_job(store)
    old = await claim(store, job_id)
    await store.append(old, 2, Started(attempt=1))
    await expire_and_reap(store, job_id)
    new = await claim(store, job_id)
    assert new.epoch == 2
    with pytest.raises(Fenced):
        await store.append(old, 3, Caption(text="from the frozen worker"))
    with pytest.raises(Fenced):
        await store.append(old, 2, Started(attempt=1))
    with pytest.raises(Fenced):
        await store.renew(old)
    await store.release(old)
    await store.append(new, 3, Started(attempt=2))
    assert await event_types(store, job_id) == [(1, "queued"), (2, "started"), (3, "started")]


async def test_an_ended_job_accepts_only_a_repetition_of_its_final_event(store: Store) -> None:
    job_id = await create_job(store)
    lease = await claim(store, job_id)
    done = Completed(usage=Usage(), timings_s=Timings())
    await store.append(lease, 2, done)
    await store.append(lease, 2, done)
    with pytest.raises(Fenced):
        await store.append(lease, 3, Caption(text="too late"))
    with pytest.raises(Fenced):
        await store.renew(lease)
    assert await store.kind_and_status(job_id) == (JobKind.VIDEO, JobStatus.COMPLETED)
    assert await store.redis.zrange(LEASES, 0, -1) == []


async def test_a_released_job_is_queued_again(store: Store) -> None:
    job_id = await create_job(store)
    lease = await store.claim(job_id)
    assert lease and await store.claim(job_id) is None
    await store.release(lease)
    assert await store.redis.zrange(QUEUED, 0, -1) == [job_id]
    again = await claim(store, job_id)
    assert again.epoch == 2


async def test_renewing_extends_the_lease(store: Store) -> None:
    job_id = await create_job(store)
    lease = await claim(store, job_id)
    await store.redis.hincrby(job_key(job_id), "until", -9000)
    await store.renew(lease)
    assert 9000 < int(await store.redis.hget(job_key(job_id), "until")) - await now_ms(store) <= 10_000
    assert await store.claim(job_id) is None


async def test_the_holder_of_an_expired_lease_writes_and_renews_until_a_reaper_takes_the_job(store: Store) -> None:
    job_id = await create_job(store)
    token = new_token()
    lease = await store.claim(job_id, token)
    assert lease
    for write in (store.append(lease, 2, Started(attempt=1)), store.renew(lease), store.claim(job_id, token)):
        await expire_lease(store, job_id)
        assert await store.claim(job_id) is None, "only a reaper takes the job back"
        assert await write in (None, lease)
    assert int(await store.redis.hget(job_key(job_id), "until")) > await now_ms(store), "renewed by the repeated claim"
    assert await event_types(store, job_id) == [(1, "queued"), (2, "started")]
    await expire_and_reap(store, job_id)
    for write in (store.append(lease, 3, Started(attempt=1)), store.renew(lease)):
        with pytest.raises(Fenced):
            await write


async def simulate_outage(store: Store, seconds: float) -> None:
    """Change the records as if the server had been unreachable for this long until now."""
    await store.redis.hincrby(ALIVE, "seen", -int(seconds * 1000))


async def test_no_lease_is_taken_right_after_an_outage(store: Store) -> None:
    job_id = await create_job(store)
    lease = await claim(store, job_id)
    await expire_lease(store, job_id)
    await simulate_outage(store, OUTAGE_S + 1)
    assert await store.reap(job_id) is None, "a reaper that had read the list of due jobs before the outage"
    assert await store.due(10, 10) == [] and await store.reap(job_id) is None
    await store.renew(lease)
    await store.redis.hincrby(ALIVE, "back", -int(LEASE_S * 1000))
    assert await store.due(10, 10) == [] and await store.redis.hget(job_key(job_id), "strikes") is None
    await expire_lease(store, job_id)
    assert await store.due(10, 10) == [job_id] and await store.reap(job_id), "the outage protects for one lease only"


async def test_short_pauses_of_the_reapers_are_no_outage(store: Store) -> None:
    job_id = await create_job(store)
    await claim(store, job_id)
    await simulate_outage(store, OUTAGE_S - 1)
    await expire_lease(store, job_id)
    assert await store.due(10, 10) == [job_id] and await store.reap(job_id)


async def test_an_idle_service_has_no_outage(store: Store) -> None:
    first, second = await create_job(store), await create_job(store)
    await store.release(await claim(store, first))
    await simulate_outage(store, 3600)
    assert await store.due(10, 10) == []
    await claim(store, second)
    await expire_lease(store, second)
    assert await store.due(10, 10) == [second] and await store.reap(second)


async def test_queued_jobs_are_woken_right_after_an_outage(store: Store) -> None:
    leased, queued = await create_job(store), await create_job(store)
    await claim(store, leased)
    await simulate_outage(store, OUTAGE_S + 1)
    await store.redis.zincrby(QUEUED, -(REWAKE_AFTER_S * 1000 + 1), queued)
    assert await store.due(10, 10) == [queued] and await store.reap(queued)


async def test_every_write_may_be_repeated(store: Store) -> None:
    record = new_record()
    assert await store.create(record) and await store.create(record)
    assert not await store.create(record.model_copy(update={"metadata": {"k": "other"}})), "another job's id"
    token = new_token()
    lease = await store.claim(record.id, token)
    assert lease and await store.claim(record.id, token) == lease
    assert await store.claim(record.id) is None
    assert await store.release(lease, Fault.STRIKE) and await store.release(lease, Fault.STRIKE)
    assert await store.redis.hget(job_key(record.id), "strikes") == "1"
    again = await claim(store, record.id)
    assert again.epoch == 2
    assert await store.release(lease), "a late release does not take the job from its new holder"
    await store.renew(again)
    assert await store.claim(record.id, token) is None
    await expire_and_reap(store, record.id)
    assert await store.reap(record.id) is None
    assert await store.redis.hget(job_key(record.id), "strikes") == "2"
    last = await claim(store, record.id)
    await store.append(last, 2, Caption(text="x"))
    assert await store.cancel(record.id) and await store.cancel(record.id)
    assert await event_types(store, record.id) == [(1, "queued"), (2, "caption"), (3, "cancelled")]


async def test_the_token_fences_a_worker_whose_epoch_was_reused(store: Store) -> None:
    """A Redis server that lost its last writes assigns the same epoch twice."""
    job_id = await create_job(store)
    before = await store.redis.dump(job_key(job_id))
    old = await store.claim(job_id)
    await store.redis.restore(job_key(job_id), 0, before, replace=True)
    new = await store.claim(job_id)
    assert old and new and old.epoch == new.epoch
    with pytest.raises(Fenced):
        await store.append(old, 2, Started(attempt=1))
    await store.append(new, 2, Started(attempt=1))


async def test_concurrent_reapers_take_a_job_back_once(store: Store) -> None:
    job_id = await create_job(store)
    assert await store.claim(job_id)
    assert await store.due(10, 10) == [] and await store.reap(job_id) is None, "the job is leased"
    await expire_lease(store, job_id)
    assert await store.due(10, 10) == [job_id]
    reaped = [job for job in await asyncio.gather(*(store.reap(job_id) for _ in range(20))) if job]
    assert [(r.job_id, r.status, r.queue, r.epoch) for r in reaped] == [(job_id, JobStatus.QUEUED, JobKind.VIDEO, 1)]
    assert await store.redis.hget(job_key(job_id), "strikes") == "1"
    assert await store.due(10, 10) == []


async def test_the_last_strike_fails_the_job_once(store: Store) -> None:
    job_id = await create_job(store)
    for strike in range(1, MAX_STRIKES + 1):
        assert await store.claim(job_id)
        await expire_lease(store, job_id)
        reaped = [job for job in await asyncio.gather(*(store.reap(job_id) for _ in range(20))) if job]
        assert [r.status for r in reaped] == [JobStatus.FAILED if strike == MAX_STRIKES else JobStatus.QUEUED]
    job = await store.job(job_id)
    assert job and job.error and (job.error.code, job.error.retryable) == ("attempts_exhausted", True)
    assert await event_types(store, job_id) == [(1, "queued"), (2, "failed")]
    assert await store.claim(job_id) is None and await store.due(10, 10) == []


@pytest.mark.parametrize("fault", Fault)
async def test_release_leaves_ending_the_job_after_the_last_fault_to_the_worker(store: Store, fault: Fault) -> None:
    job_id = await create_job(store)
    for count in range(1, fault.limit + 1):
        assert await store.on_last_chance(job_id) is (count == fault.limit)
        lease = await store.claim(job_id)
        assert lease and await store.release(lease, fault) is (count < fault.limit)
    await store.append(lease, 2, Failed.of(DecodeFailed("Its decoder died.")))
    assert await event_types(store, job_id) == [(1, "queued"), (2, "failed")]


async def test_strikes_and_stalls_are_counted_separately_and_reset_by_a_finished_text(store: Store) -> None:
    job_id = await create_job(store)
    for fault in [Fault.STALL] * (MAX_STALLS - 1) + [Fault.STRIKE]:
        assert await store.release(await claim(store, job_id), fault)
    assert await store.redis.hmget(job_key(job_id), ["strikes", "stalls"]) == ["1", str(MAX_STALLS - 1)]
    lease = await claim(store, job_id)
    await store.append(lease, 2, Differential(keyframe=0, time_s=0, text="x"))
    assert await store.redis.hmget(job_key(job_id), ["strikes", "stalls"]) == [None, None]
    assert not await store.on_last_chance(job_id)


async def test_a_finished_text_resets_the_strikes(store: Store) -> None:
    job_id = await create_job(store)
    for keyframe in range(2 * MAX_STRIKES):
        lease = await claim(store, job_id)
        await store.append(lease, keyframe + 2, Differential(keyframe=keyframe, time_s=0, text="x"))
        await expire_and_reap(store, job_id)
    assert await store.kind_and_status(job_id) == (JobKind.VIDEO, JobStatus.QUEUED)
    for _ in range(MAX_STRIKES - 1):
        lease = await claim(store, job_id)
        await store.append(lease, keyframe + 3, Delta(of="caption", text="x"))
        keyframe += 1
        await expire_and_reap(store, job_id)
    assert (await event_types(store, job_id))[-1] == (keyframe + 3, "failed")


async def test_reaping_ends_a_job_whose_cancellation_was_requested(store: Store) -> None:
    job_id = await create_job(store)
    lease = await claim(store, job_id)
    await store.append(lease, 2, Started(attempt=1))
    assert await store.cancel(job_id) is JobStatus.RUNNING
    await expire_lease(store, job_id)
    reaped = await store.reap(job_id)
    assert reaped and reaped.status is JobStatus.CANCELLED
    assert await event_types(store, job_id) == [(1, "queued"), (2, "started"), (3, "cancelled")]


async def test_a_queued_job_is_due_again_until_a_worker_claims_it(store: Store) -> None:
    job_id = await create_job(store)
    for _ in range(3):
        assert await store.due(10, 10) == [] and await store.reap(job_id) is None
        await store.redis.zincrby(QUEUED, -(REWAKE_AFTER_S * 1000 + 1), job_id)
        assert await store.due(10, 10) == [job_id]
        assert await store.reap(job_id)
    assert await store.redis.hget(job_key(job_id), "strikes") is None
    deleted = new_job_id()
    await store.redis.zadd(QUEUED, {deleted: 1})
    await store.redis.zadd(LEASES, {deleted: 1})
    assert await store.reap(deleted) is None and await store.due(10, 10) == []


async def test_a_stream_trimmed_at_its_start_still_accepts_events(store: Store) -> None:
    job_id = await create_job(store)
    lease = await claim(store, job_id)
    for seq in range(2, 6):
        await store.append(lease, seq, Delta(of="caption", text="x"))
    await store.redis.xtrim(events_key(job_id), maxlen=1, approximate=False)
    await store.append(lease, 6, Caption(text="x"))
    assert [seq for seq, _ in await event_types(store, job_id)] == [5, 6]
