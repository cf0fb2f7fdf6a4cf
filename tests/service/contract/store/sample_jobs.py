"""Jobs in the store, for the tests of this folder."""

from datetime import UTC, datetime

from service.contract.jobs import JobKind, Record, Source, VideoOptions, new_job_id
from service.contract.store.keys import LEASES, job_key
from service.contract.store.leases import Lease
from service.contract.store.store import Store


def new_record(**changes: object) -> Record:
    """Return the record of a new video job, with these fields changed."""
    values = {
        "id": new_job_id(),
        "kind": JobKind.VIDEO,
        "options": VideoOptions(),
        "source": Source(filename="a.mp4", bytes=7),
        "metadata": {"k": "v"},
        "created_at": datetime.now(UTC),
    }
    return Record.model_validate({**values, **changes})


async def create_job(store: Store) -> str:
    """Create a video job and return its id."""
    record = new_record()
    assert await store.create(record)
    return record.id


async def claim(store: Store, job_id: str) -> Lease:
    """Claim a job that must be free."""
    lease = await store.claim(job_id)
    assert lease is not None
    return lease


async def expire_lease(store: Store, job_id: str) -> None:
    """Make the job's lease end now."""
    await store.redis.hset(job_key(job_id), "until", 1)
    await store.redis.zadd(LEASES, {job_id: 1})


async def expire_and_reap(store: Store, job_id: str) -> None:
    """Make the job's lease end now, and let a reaper take the job back."""
    await expire_lease(store, job_id)
    assert await store.reap(job_id)


async def event_types(store: Store, job_id: str) -> list[tuple[int, str]]:
    """Return position and type of each stored event."""
    return [(stored.seq, stored.event.type) async for stored in store.events(job_id)]
