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
from service.contract.store import (
    JOBS,
    LEASES,
    PAGE,
    QUEUED,
    CancelRequested,
    Fenced,
    Store,
    WorkerCard,
    events_key,
    job_key,
)


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


async def types(store: Store, job_id: str) -> list[tuple[int, str]]:
    return [(stored.seq, stored.event.type) async for stored in store.events(job_id)]


async def test_a_created_job_is_queued_and_reads_back(store: Store) -> None:
    record = a_record(options=VideoOptions(interval_s=0.5, seed=3))
    assert await store.create(record)
    assert await store.record(record.id) == record
    assert await store.kind_and_status(record.id) == (JobKind.VIDEO, JobStatus.QUEUED)
    assert await types(store, record.id) == [(1, "queued")]
    assert await store.redis.zrange(QUEUED, 0, -1) == [record.id]


async def test_an_id_is_taken_once(store: Store) -> None:
    record = a_record()
    assert await store.create(record)
    assert not await store.create(record)
    assert await types(store, record.id) == [(1, "queued")]


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
    with pytest.raises(AssertionError, match="gap"):
        await store.append(lease, 3, Started(attempt=1))
    assert await types(store, job_id) == [(1, "queued")]


async def test_a_worker_that_lost_its_lease_is_fenced(store: Store) -> None:
    job_id = await a_job(store)
    old = await store.claim(job_id)
    assert old
    await store.append(old, 2, Started(attempt=1))
    await lapse(store, job_id)
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
    await store.redis.hset(job_key(job_id), "until", 1)
    await store.renew(lease)
    assert await store.claim(job_id) is None


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
    found = await store.summaries([first, new_job_id(), second])
    assert [(job.id, job.status) for job in found] == [(first, JobStatus.QUEUED), (second, JobStatus.CANCELLED)]
    assert await store.summaries([]) == []


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
    first = Keyframe(index=0, time_s=0.0, image="/0.jpg")
    second = Keyframe(index=1, time_s=2.0, image="/1.jpg")
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
