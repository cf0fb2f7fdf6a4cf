"""The store: creating, cancelling, deleting and reading jobs."""

import json

import pytest

from service.contract.events import (
    EVENT,
    Caption,
    Delta,
    Started,
)
from service.contract.jobs import JobKind, JobStatus, VideoOptions, new_job_id
from service.contract.store.keys import ALIVE, JOBS, LEASES, QUEUED
from service.contract.store.leases import CancelRequested, Fenced
from service.contract.store.store import EVENTS_PER_READ, ListPosition, Store
from tests.service.contract.store.sample_jobs import (
    claim,
    create_job,
    event_types,
    expire_lease,
    new_record,
)


async def test_a_created_job_is_queued_and_can_be_read(store: Store) -> None:
    record = new_record(options=VideoOptions(interval_s=0.5, seed=3))
    assert await store.create(record)
    assert await store.record(record.id) == record
    assert await store.kind_and_status(record.id) == (JobKind.VIDEO, JobStatus.QUEUED)
    assert await event_types(store, record.id) == [(1, "queued")]
    assert await store.redis.zrange(QUEUED, 0, -1) == [record.id]


async def test_a_queued_job_is_cancelled_at_once(store: Store) -> None:
    job_id = await create_job(store)
    assert await store.cancel(job_id) is JobStatus.CANCELLED
    assert await store.cancel(job_id) is JobStatus.CANCELLED
    assert await event_types(store, job_id) == [(1, "queued"), (2, "cancelled")]
    assert await store.redis.zrange(QUEUED, 0, -1) == []


async def test_a_claimed_job_that_has_not_started_is_cancelled_at_once(store: Store) -> None:
    job_id = await create_job(store)
    lease = await claim(store, job_id)
    assert await store.cancel(job_id) is JobStatus.CANCELLED
    with pytest.raises(Fenced):
        await store.append(lease, 2, Started(attempt=1))
    assert await store.redis.zrange(LEASES, 0, -1) == []


async def test_cancelling_a_running_job_notifies_its_worker(store: Store) -> None:
    job_id = await create_job(store)
    lease = await claim(store, job_id)
    await store.append(lease, 2, Started(attempt=1))
    assert await store.cancel(job_id) is JobStatus.RUNNING
    with pytest.raises(CancelRequested):
        await store.renew(lease)
    with pytest.raises(CancelRequested):
        await store.append(lease, 3, Delta(of="caption", text="x"))
    await store.append(lease, 4, EVENT.validate_python({"type": "cancelled"}))
    assert await event_types(store, job_id) == [(1, "queued"), (2, "started"), (3, "delta"), (4, "cancelled")]
    assert await store.cancel(job_id) is JobStatus.CANCELLED


async def test_a_running_job_with_an_expired_lease_is_cancelled_at_once(store: Store) -> None:
    job_id = await create_job(store)
    lease = await claim(store, job_id)
    await store.append(lease, 2, Started(attempt=1))
    await expire_lease(store, job_id)
    assert await store.cancel(job_id) is JobStatus.CANCELLED
    with pytest.raises(Fenced):
        await store.append(lease, 3, Caption(text="too late"))


async def test_cancelling_an_unknown_job_does_nothing(store: Store) -> None:
    assert await store.cancel(new_job_id()) is None


async def test_a_deleted_job_leaves_no_key(store: Store) -> None:
    job_id = await create_job(store)
    lease = await claim(store, job_id)
    await store.delete(job_id)
    with pytest.raises(Fenced):
        await store.append(lease, 2, Started(attempt=1))
    assert await store.redis.keys("sharecap:*") == [ALIVE], "it belongs to no job"
    assert await store.record(job_id) is None and await store.job(job_id) is None


async def test_events_beyond_one_page_are_read_in_order(store: Store) -> None:
    job_id = await create_job(store)
    lease = await claim(store, job_id)
    newest, middle = EVENTS_PER_READ + 11, EVENTS_PER_READ + 5
    for seq in range(2, newest + 1):
        await store.append(lease, seq, Delta(of="caption", text=str(seq)))
    assert [stored.seq async for stored in store.events(job_id)] == list(range(1, newest + 1))
    assert [stored.seq async for stored in store.events(job_id, middle)] == list(range(middle + 1, newest + 1))
    assert [stored.event.type async for stored in store.events(job_id, deltas=False)] == ["queued"]


async def test_event_data_is_stored_on_one_line_without_loss(store: Store) -> None:
    job_id = await create_job(store)
    lease = await claim(store, job_id)
    text = 'a "quoted" line\nand another\r\n  — 正方形 🟨 \x00 <script>'
    await store.append(lease, 2, Caption(text=text))
    (entry,) = await store.entries(job_id, 1)
    assert json.loads(entry.data) == {"text": text}
    assert "\n" not in entry.data and "\r" not in entry.data
    assert entry.parse().event == Caption(text=text)


async def test_pages_list_every_job_once_even_with_equal_creation_times(store: Store) -> None:
    ids = [await create_job(store) for _ in range(11)]
    for job_id in ids[:7]:
        await store.redis.zadd(JOBS, {job_id: 1_000_000})
    seen: list[ListPosition] = []
    position = None
    while page := await store.page(position, 2):
        assert len(page) <= 2
        seen += page
        position = page[-1]
    assert seen == sorted(seen, reverse=True)
    assert sorted(job_id for _, job_id in seen) == sorted(ids)


async def test_records_include_statuses_and_leave_out_deleted_jobs(store: Store) -> None:
    first, second = await create_job(store), await create_job(store)
    await store.cancel(second)
    records = await store.records([first, new_job_id(), second])
    statuses = [(record.id, status) for record, status in records]
    assert statuses == [(first, JobStatus.QUEUED), (second, JobStatus.CANCELLED)]
    assert await store.records([]) == []
