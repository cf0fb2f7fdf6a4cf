"""Concurrent appends share round trips, and each receives its own result."""

import asyncio
from typing import Any

import pytest

from service.contract.events import Delta, Differential
from service.contract.store.leases import Fenced, Lease, StreamTruncated
from service.contract.store.store import Store
from tests.service.contract.store.sample_jobs import claim, create_job, event_types

DELTA = Delta(of="caption", text="a")


@pytest.fixture
def pipelines(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Collects one entry for each pipeline that the store opens."""
    opened: list[bool] = []
    pipeline = store.redis.pipeline

    def counted(transaction: bool = True) -> Any:
        opened.append(transaction)
        return pipeline(transaction=transaction)

    monkeypatch.setattr(store.redis, "pipeline", counted)
    return opened


async def test_concurrent_appends_of_several_jobs_need_one_round_trip(store: Store, pipelines: list[bool]) -> None:
    leases = [await claim(store, await create_job(store)) for _ in range(8)]
    await store.append(leases[0], 2, DELTA)
    assert pipelines == [], "a single append needs no pipeline"
    await asyncio.gather(*(store.append(lease, 3 if lease is leases[0] else 2, DELTA) for lease in leases))
    assert pipelines == [False]
    for lease in leases:
        assert (await event_types(store, lease.job_id))[-1][1] == "delta"


async def test_each_append_of_a_group_has_its_own_result(store: Store) -> None:
    good, gap = [await claim(store, await create_job(store)) for _ in range(2)]
    lost = Lease(good.job_id, good.epoch, "another token")
    results = await asyncio.gather(
        store.append(good, 2, DELTA), store.append(lost, 2, DELTA), store.append(gap, 7, DELTA), return_exceptions=True
    )
    assert [type(result) for result in results] == [type(None), Fenced, StreamTruncated]


async def test_a_server_that_has_forgotten_the_script_receives_it_again(store: Store) -> None:
    leases = [await claim(store, await create_job(store)) for _ in range(3)]
    await store.redis.script_flush()
    await asyncio.gather(*(store.append(lease, 2, DELTA) for lease in leases))
    differential = Differential(keyframe=0, time_s=0, text="a")
    await asyncio.gather(*(store.append(lease, 3, differential) for lease in leases))
    for lease in leases:
        assert [event.seq async for event in store.events(lease.job_id)] == [1, 2, 3]


async def test_a_cancelled_append_leaves_the_others_of_its_group_alone(store: Store) -> None:
    leases = [await claim(store, await create_job(store)) for _ in range(3)]
    appends = [asyncio.create_task(store.append(lease, 2, DELTA)) for lease in leases]
    await asyncio.sleep(0)
    appends[1].cancel()
    results = await asyncio.gather(*appends, return_exceptions=True)
    assert [type(result) for result in results] == [type(None), asyncio.CancelledError, type(None)]
