"""The store: claims, fences, repeated writes, cancelling, reading back, and what folded events add up to."""

import asyncio
import json
from datetime import UTC, datetime

import pytest

from service.contract.errors import DecodeFailed
from service.contract.events import (
    EVENT,
    Caption,
    Completed,
    Delta,
    Differential,
    Failed,
    Keyframes,
    Queued,
    Started,
    StoredEvent,
    Video,
    fold,
)
from service.contract.jobs import (
    JobKind,
    JobStatus,
    Keyframe,
    RecaptionOptions,
    Record,
    Source,
    Timings,
    Usage,
    VideoOptions,
    new_job_id,
)
from service.contract.store.keys import JOBS, LEASES, QUEUED, events_key, job_key
from service.contract.store.leases import (
    MAX_STRIKES,
    REWAKE_AFTER_S,
    CancelRequested,
    Fenced,
    StreamTruncated,
    new_token,
)
from service.contract.store.store import PAGE, Store
from service.contract.store.worker_cards import WorkerCard


def a_record(**changes: object) -> Record:
    values = {
        "id": new_job_id(),
        "kind": JobKind.VIDEO,
        "options": VideoOptions(),
        "source": Source(filename="a.mp4", bytes=7),
        "metadata": {"k": "v"},
        "created_at": datetime.now(UTC),
    }
    return Record.model_validate({**values, **changes})


async def a_job(store: Store) -> str:
    record = a_record()
    assert await store.create(record)
    return record.id


async def lapse(store: Store, job_id: str) -> None:
    """Make the job's lease end now."""
    await store.redis.hset(job_key(job_id), "until", 1)
    await store.redis.zadd(LEASES, {job_id: 1})


async def taken_back(store: Store, job_id: str) -> None:
    """Let the job's lease end, and a reaper see it."""
    await lapse(store, job_id)
    assert await store.reap(job_id)


async def now_ms(store: Store) -> int:
    seconds, micros = await store.redis.time()
    return int(seconds * 1000 + micros // 1000)


async def types(store: Store, job_id: str) -> list[tuple[int, str]]:
    return [(stored.seq, stored.event.type) async for stored in store.events(job_id)]


async def test_a_created_job_is_queued_and_reads_back(store: Store) -> None:
    record = a_record(options=VideoOptions(interval_s=0.5, seed=3))
    assert await store.create(record)
    assert await store.record(record.id) == record
    assert await store.kind_and_status(record.id) == (JobKind.VIDEO, JobStatus.QUEUED)
    assert await types(store, record.id) == [(1, "queued")]
    assert await store.redis.zrange(QUEUED, 0, -1) == [record.id]


async def test_only_one_of_many_claims_gets_the_job(store: Store) -> None:
    job_id = await a_job(store)
    leases = await asyncio.gather(*(store.claim(job_id) for _ in range(20)))
    assert [lease.epoch for lease in leases if lease] == [1]
    assert await store.redis.zrange(QUEUED, 0, -1) == []
    assert await store.redis.zrange(LEASES, 0, -1) == [job_id]


async def test_unknown_and_ended_jobs_cannot_be_claimed(store: Store) -> None:
    assert await store.claim(new_job_id()) is None
    job_id = await a_job(store)
    assert await store.cancel(job_id) is JobStatus.CANCELLED
    assert await store.claim(job_id) is None


async def test_a_repeated_append_is_dropped(store: Store) -> None:
    job_id = await a_job(store)
    lease = await store.claim(job_id)
    assert lease
    for _ in range(3):
        await store.append(lease, 2, Started(attempt=1))
    assert await types(store, job_id) == [(1, "queued"), (2, "started")]
    assert await store.kind_and_status(job_id) == (JobKind.VIDEO, JobStatus.RUNNING)


async def test_a_gap_is_never_written(store: Store) -> None:
    job_id = await a_job(store)
    lease = await store.claim(job_id)
    assert lease
    with pytest.raises(StreamTruncated):
        await store.append(lease, 3, Started(attempt=1))
    assert await types(store, job_id) == [(1, "queued")]


async def test_a_worker_that_lost_its_lease_is_fenced(store: Store) -> None:
    job_id = await a_job(store)
    old = await store.claim(job_id)
    assert old
    await store.append(old, 2, Started(attempt=1))
    await taken_back(store, job_id)
    new = await store.claim(job_id)
    assert new and new.epoch == 2
    with pytest.raises(Fenced):
        await store.append(old, 3, Caption(text="from the frozen worker"))
    with pytest.raises(Fenced):
        await store.append(old, 2, Started(attempt=1))
    with pytest.raises(Fenced):
        await store.renew(old)
    await store.release(old)
    await store.append(new, 3, Started(attempt=2))
    assert await types(store, job_id) == [(1, "queued"), (2, "started"), (3, "started")]


async def test_an_ended_job_takes_no_more_and_its_end_may_be_repeated(store: Store) -> None:
    job_id = await a_job(store)
    lease = await store.claim(job_id)
    assert lease
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
    job_id = await a_job(store)
    lease = await store.claim(job_id)
    assert lease and await store.claim(job_id) is None
    await store.release(lease)
    assert await store.redis.zrange(QUEUED, 0, -1) == [job_id]
    again = await store.claim(job_id)
    assert again and again.epoch == 2


async def test_renewing_holds_the_job(store: Store) -> None:
    job_id = await a_job(store)
    lease = await store.claim(job_id)
    assert lease
    await store.redis.hincrby(job_key(job_id), "until", -9000)
    await store.renew(lease)
    assert 9000 < int(await store.redis.hget(job_key(job_id), "until")) - await now_ms(store) <= 10_000
    assert await store.claim(job_id) is None


async def test_a_lease_that_has_run_out_writes_nothing(store: Store) -> None:
    job_id = await a_job(store)
    lease = await store.claim(job_id)
    assert lease
    await lapse(store, job_id)
    for write in (store.append(lease, 2, Started(attempt=1)), store.renew(lease)):
        with pytest.raises(Fenced):
            await write
    assert await store.claim(job_id) is None, "only a reaper takes it back"
    assert await types(store, job_id) == [(1, "queued")]


async def test_everything_may_be_repeated(store: Store) -> None:
    record = a_record()
    assert await store.create(record) and await store.create(record)
    assert not await store.create(record.model_copy(update={"metadata": {"k": "other"}})), "another job's id"
    token = new_token()
    lease = await store.claim(record.id, token)
    assert lease and await store.claim(record.id, token) == lease
    assert await store.claim(record.id) is None
    assert await store.release(lease, strike=True) and await store.release(lease, strike=True)
    assert await store.redis.hget(job_key(record.id), "strikes") == "1"
    again = await store.claim(record.id)
    assert again and again.epoch == 2
    assert await store.release(lease), "a release that comes late does not take the job from its new holder"
    await store.renew(again)
    assert await store.claim(record.id, token) is None
    await taken_back(store, record.id)
    assert await store.reap(record.id) is None
    assert await store.redis.hget(job_key(record.id), "strikes") == "2"
    last = await store.claim(record.id)
    assert last
    await store.append(last, 2, Caption(text="x"))
    assert await store.cancel(record.id) and await store.cancel(record.id)
    assert await types(store, record.id) == [(1, "queued"), (2, "caption"), (3, "cancelled")]


async def test_a_token_fences_where_an_epoch_would_not(store: Store) -> None:
    """A server that lost its last writes counts an epoch again."""
    job_id = await a_job(store)
    before = await store.redis.dump(job_key(job_id))
    old = await store.claim(job_id)
    await store.redis.restore(job_key(job_id), 0, before, replace=True)
    new = await store.claim(job_id)
    assert old and new and old.epoch == new.epoch
    with pytest.raises(Fenced):
        await store.append(old, 2, Started(attempt=1))
    await store.append(new, 2, Started(attempt=1))


async def test_many_reapers_take_a_job_back_once(store: Store) -> None:
    job_id = await a_job(store)
    assert await store.claim(job_id)
    assert await store.due(10, 10) == [] and await store.reap(job_id) is None, "it is held"
    await lapse(store, job_id)
    assert await store.due(10, 10) == [job_id]
    found = [reaped for reaped in await asyncio.gather(*(store.reap(job_id) for _ in range(20))) if reaped]
    assert [(r.job_id, r.status, r.kind, r.epoch) for r in found] == [(job_id, JobStatus.QUEUED, JobKind.VIDEO, 1)]
    assert await store.redis.hget(job_key(job_id), "strikes") == "1"
    assert await store.due(10, 10) == []


async def test_after_three_strikes_a_job_fails_once(store: Store) -> None:
    job_id = await a_job(store)
    for strike in range(1, MAX_STRIKES + 1):
        assert await store.claim(job_id)
        await lapse(store, job_id)
        found = [reaped for reaped in await asyncio.gather(*(store.reap(job_id) for _ in range(20))) if reaped]
        assert [r.status for r in found] == [JobStatus.FAILED if strike == MAX_STRIKES else JobStatus.QUEUED]
    job = await store.job(job_id)
    assert job and job.error and (job.error.code, job.error.retryable) == ("attempts_exhausted", True)
    assert await types(store, job_id) == [(1, "queued"), (2, "failed")]
    assert await store.claim(job_id) is None and await store.due(10, 10) == []


async def test_the_last_strike_leaves_the_end_to_the_worker(store: Store) -> None:
    job_id = await a_job(store)
    for strike in range(1, MAX_STRIKES + 1):
        lease = await store.claim(job_id)
        assert lease and await store.release(lease, strike=True) is (strike < MAX_STRIKES)
    await store.append(lease, 2, Failed.of(DecodeFailed("Its decoder died.")))
    assert await types(store, job_id) == [(1, "queued"), (2, "failed")]


async def test_a_finished_text_forgives_strikes(store: Store) -> None:
    job_id = await a_job(store)
    for keyframe in range(2 * MAX_STRIKES):
        lease = await store.claim(job_id)
        assert lease
        await store.append(lease, keyframe + 2, Differential(keyframe=keyframe, time_s=0, text="x"))
        await taken_back(store, job_id)
    assert await store.kind_and_status(job_id) == (JobKind.VIDEO, JobStatus.QUEUED)
    for _ in range(MAX_STRIKES - 1):
        lease = await store.claim(job_id)
        assert lease
        await store.append(lease, keyframe + 3, Delta(of="caption", text="x"))
        keyframe += 1
        await taken_back(store, job_id)
    assert (await types(store, job_id))[-1] == (keyframe + 3, "failed")


async def test_a_cancelled_job_whose_worker_has_gone_ends(store: Store) -> None:
    job_id = await a_job(store)
    lease = await store.claim(job_id)
    assert lease
    await store.append(lease, 2, Started(attempt=1))
    assert await store.cancel(job_id) is JobStatus.RUNNING
    await lapse(store, job_id)
    found = await store.reap(job_id)
    assert found and found.status is JobStatus.CANCELLED
    assert await types(store, job_id) == [(1, "queued"), (2, "started"), (3, "cancelled")]


async def test_a_wake_up_that_was_lost_is_due_again_and_again(store: Store) -> None:
    job_id = await a_job(store)
    for _ in range(3):
        assert await store.due(10, 10) == [] and await store.reap(job_id) is None
        await store.redis.zincrby(QUEUED, -(REWAKE_AFTER_S * 1000 + 1), job_id)
        assert await store.due(10, 10) == [job_id]
        assert await store.reap(job_id)
    assert await store.redis.hget(job_key(job_id), "strikes") is None
    gone = new_job_id()
    await store.redis.zadd(QUEUED, {gone: 1})
    await store.redis.zadd(LEASES, {gone: 1})
    assert await store.reap(gone) is None and await store.due(10, 10) == []


async def test_a_queued_job_is_cancelled_at_once(store: Store) -> None:
    job_id = await a_job(store)
    assert await store.cancel(job_id) is JobStatus.CANCELLED
    assert await store.cancel(job_id) is JobStatus.CANCELLED
    assert await types(store, job_id) == [(1, "queued"), (2, "cancelled")]
    assert await store.redis.zrange(QUEUED, 0, -1) == []


async def test_a_claimed_job_that_was_not_begun_is_cancelled_under_its_worker(store: Store) -> None:
    job_id = await a_job(store)
    lease = await store.claim(job_id)
    assert lease and await store.cancel(job_id) is JobStatus.CANCELLED
    with pytest.raises(Fenced):
        await store.append(lease, 2, Started(attempt=1))
    assert await store.redis.zrange(LEASES, 0, -1) == []


async def test_the_worker_of_a_running_job_is_asked_to_cancel(store: Store) -> None:
    job_id = await a_job(store)
    lease = await store.claim(job_id)
    assert lease
    await store.append(lease, 2, Started(attempt=1))
    assert await store.cancel(job_id) is JobStatus.RUNNING
    with pytest.raises(CancelRequested):
        await store.renew(lease)
    with pytest.raises(CancelRequested):
        await store.append(lease, 3, Delta(of="caption", text="x"))
    await store.append(lease, 4, EVENT.validate_python({"type": "cancelled"}))
    assert await types(store, job_id) == [(1, "queued"), (2, "started"), (3, "delta"), (4, "cancelled")]
    assert await store.cancel(job_id) is JobStatus.CANCELLED


async def test_a_running_job_that_nobody_holds_is_cancelled_at_once(store: Store) -> None:
    job_id = await a_job(store)
    lease = await store.claim(job_id)
    assert lease
    await store.append(lease, 2, Started(attempt=1))
    await lapse(store, job_id)
    assert await store.cancel(job_id) is JobStatus.CANCELLED
    with pytest.raises(Fenced):
        await store.append(lease, 3, Caption(text="too late"))


async def test_cancelling_an_unknown_job_does_nothing(store: Store) -> None:
    assert await store.cancel(new_job_id()) is None


async def test_a_deleted_job_leaves_no_key(store: Store) -> None:
    job_id = await a_job(store)
    lease = await store.claim(job_id)
    assert lease
    await store.delete(job_id)
    with pytest.raises(Fenced):
        await store.append(lease, 2, Started(attempt=1))
    assert await store.redis.keys("sharecap:*") == []
    assert await store.record(job_id) is None and await store.job(job_id) is None


async def test_events_beyond_one_page_come_in_order(store: Store) -> None:
    job_id = await a_job(store)
    lease = await store.claim(job_id)
    assert lease
    for seq in range(2, PAGE + 12):
        await store.append(lease, seq, Delta(of="caption", text=str(seq)))
    assert [stored.seq async for stored in store.events(job_id)] == list(range(1, PAGE + 12))
    assert [stored.seq async for stored in store.events(job_id, PAGE + 5)] == list(range(PAGE + 6, PAGE + 12))
    assert [stored.event.type async for stored in store.events(job_id, deltas=False)] == ["queued"]


async def test_data_is_kept_to_the_byte(store: Store) -> None:
    job_id = await a_job(store)
    lease = await store.claim(job_id)
    assert lease
    text = 'a "quoted" line\nand another\r\n  — 正方形 🟨 \x00 <script>'
    await store.append(lease, 2, Caption(text=text))
    (entry,) = await store.entries(job_id, 1)
    assert json.loads(entry.data) == {"text": text}
    assert "\n" not in entry.data and "\r" not in entry.data
    assert entry.parse().event == Caption(text=text)


async def test_pages_list_every_job_once_even_of_one_instant(store: Store) -> None:
    ids = [await a_job(store) for _ in range(11)]
    for job_id in ids[:7]:
        await store.redis.zadd(JOBS, {job_id: 1_000_000})
    seen: list[tuple[int, str]] = []
    place = None
    while found := await store.page(place, 2):
        assert len(found) <= 2
        seen += found
        place = found[-1]
    assert seen == sorted(seen, reverse=True)
    assert sorted(job_id for _, job_id in seen) == sorted(ids)


async def test_summaries_tell_statuses_and_leave_out_deleted_jobs(store: Store) -> None:
    first, second = await a_job(store), await a_job(store)
    await store.cancel(second)
    found = await store.records([first, new_job_id(), second])
    statuses = [(record.id, status) for record, status in found]
    assert statuses == [(first, JobStatus.QUEUED), (second, JobStatus.CANCELLED)]
    assert await store.records([]) == []


async def test_worker_cards_come_and_go(store: Store) -> None:
    assert await store.workers() == []
    card = WorkerCard(id="w1", model="m", slots=4)
    await store.show_worker(card)
    assert await store.workers() == [card]
    assert 0 < await store.redis.ttl("sharecap:worker:w1") <= 15
    await store.hide_worker("w1")
    assert await store.workers() == []


async def test_a_stream_cut_at_its_start_still_takes_events(store: Store) -> None:
    job_id = await a_job(store)
    lease = await store.claim(job_id)
    assert lease
    for seq in range(2, 6):
        await store.append(lease, seq, Delta(of="caption", text="x"))
    await store.redis.xtrim(events_key(job_id), maxlen=1, approximate=False)
    await store.append(lease, 6, Caption(text="x"))
    assert [seq for seq, _ in await types(store, job_id)] == [5, 6]


def at(second: int) -> datetime:
    return datetime(2030, 1, 1, 0, 0, second, tzinfo=UTC)


def test_fold_adds_up_a_resumed_job() -> None:
    first = Keyframe(index=0, time_s=0.0)
    second = Keyframe(index=1, time_s=2.0)
    story = [
        Queued(),
        Started(attempt=1),
        Video(duration_s=3.0, width=160, height=120, fps=10.0, interval_s=2.0),
        Keyframes(keyframes=[first], complete=False),
        Keyframes(keyframes=[second], complete=True),
        Delta(of="differential", keyframe=0, text="A"),
        Differential(keyframe=0, time_s=0.0, text="A square."),
        Started(attempt=2),
        Differential(keyframe=1, time_s=2.0, text="It moves."),
        Caption(text="A square moves.", keyframes_seen=2),
        Completed(usage=Usage(prompt_tokens=5), timings_s=Timings(queued=1.5)),
    ]
    record = a_record()
    job = fold(record, [StoredEvent(seq=n, at=at(n), event=event) for n, event in enumerate(story, 1)])
    assert (job.status, job.attempts, job.started_at, job.finished_at) == (JobStatus.COMPLETED, 2, at(2), at(11))
    assert job.source and (job.source.duration_s, job.source.width, job.source.filename) == (3.0, 160, "a.mp4")
    assert [keyframe.index for keyframe in job.keyframes] == [0, 1]
    assert [differential.text for differential in job.differentials] == ["A square.", "It moves."]
    assert (job.caption, job.keyframes_seen, job.interval_s) == ("A square moves.", 2, 2.0)
    assert job.usage == Usage(prompt_tokens=5) and job.timings_s == Timings(queued=1.5)
    assert record.source and record.source.duration_s is None, "the record itself is not touched"


def test_fold_tells_a_failure_and_half_a_job() -> None:
    queued = StoredEvent(seq=1, at=at(1), event=Queued())
    failed = StoredEvent(seq=2, at=at(2), event=Failed.of(DecodeFailed("No frame could be decoded.")))
    assert fold(a_record(), [queued]).status is JobStatus.QUEUED
    job = fold(a_record(), [queued, failed])
    assert job.status is JobStatus.FAILED and job.finished_at == at(2)
    assert job.error and (job.error.code, job.error.retryable) == ("decode_failed", False)


def test_a_record_keeps_its_options_kind_through_json() -> None:
    options = RecaptionOptions(prompt="A fox", temperature=0.5)
    record = a_record(kind=JobKind.RECAPTION, options=options, source=None)
    assert Record.model_validate_json(record.model_dump_json()).options == options
