"""The reaper: a job whose stored data is malformed does not keep it from the other jobs."""

from pathlib import Path
from typing import Any

import pytest

from service.contract.jobs import JobKind
from service.contract.storage.local import LocalStorage
from service.contract.store.keys import LEASES, QUEUED, job_key
from service.contract.store.reaper import POSTPONE_S, Reaper
from service.contract.store.store import Store
from service.contract.store.wakeups import Wakeups
from tests.service.contract.store.sample_jobs import claim, create_job, expire_lease

LONG_AGO_MS = 1


async def abandoned(store: Store, **changes: str) -> str:
    """Return the id of a job whose lease has expired, after these changes of its record."""
    job_id = await create_job(store)
    await claim(store, job_id)
    await expire_lease(store, job_id)
    if changes:
        await store.redis.hset(job_key(job_id), mapping=changes)
    return job_id


async def never_woken(store: Store, **changes: str) -> str:
    """Return the id of a queued job whose wake-up was lost, after these changes of its record."""
    job_id = await create_job(store)
    await store.redis.zadd(QUEUED, {job_id: LONG_AGO_MS})
    if changes:
        await store.redis.hset(job_key(job_id), mapping=changes)
    return job_id


async def test_malformed_jobs_do_not_stop_the_reaping_of_others(
    store: Store, redis_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The malformed jobs are due before the others."""
    malformed = [
        await abandoned(store, until="soon"),
        await abandoned(store, strikes="many"),
        await abandoned(store, deadline="tomorrow"),
        await never_woken(store, queue="nowhere"),
        await never_woken(store, deadline="tomorrow"),
    ]
    no_epoch, no_hash = await never_woken(store), await never_woken(store)
    await store.redis.hdel(job_key(no_epoch), "epoch")
    await store.redis.delete(job_key(no_hash))
    await store.redis.set(job_key(no_hash), "not a hash")
    malformed += [no_epoch, no_hash]
    healthy = [await abandoned(store), await never_woken(store)]

    wakeups = Wakeups(redis_url)
    await Reaper(store, wakeups, LocalStorage(tmp_path)).reap()
    wakeups.close()

    queues: Any = [await store.redis.lrange(f"rq:queue:{name}", 0, -1) for name in (JobKind.VIDEO, "resumed")]
    assert [[wakeup[: len(healthy[0])] for wakeup in queue] for queue in queues] == [[healthy[1]], [healthy[0]]]
    assert all(job_id in caplog.text for job_id in malformed)
    assert await store.due(10, 10) == [], "the malformed jobs wait, and do not take the place of others"
    seconds, _ = await store.redis.time()
    due_s = [(await store.redis.zscore(index, malformed[k])) / 1000 for k, index in ((0, LEASES), (4, QUEUED))]
    assert all(seconds + POSTPONE_S / 2 < due < seconds + 2 * POSTPONE_S for due in due_s)
