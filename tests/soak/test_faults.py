"""One kind of fault at a time: frozen workers, deadly videos, a Valkey that dies, everything restarted under load."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.contract.store.store import LEASES, REWAKE_AFTER_S
from tests.soak.cluster import Cluster
from tests.soak.conftest import KEYFRAMES, Extent
from tests.soak.history import check, read
from tests.soak.worker import DEADLY_BOX, DEADLY_SEED

OPTIONS: dict[str, Any] = {"keyframes": "interval", "interval_s": "1"}
BACK_WITHIN_S = 10.0


async def begun(cluster: Cluster, job_id: str, differentials: int = 1) -> None:
    """Wait until the job has so many differentials."""
    async with asyncio.timeout(60):
        while len((await cluster.store.job(job_id)).differentials) < differentials:  # type: ignore[union-attr]
            await asyncio.sleep(0.02)


async def test_a_worker_frozen_past_its_lease_writes_nothing(start: Callable[..., Any], video: Path) -> None:
    cluster = await start(1, word_s=0.2)
    job_id = await cluster.add(video, **OPTIONS)
    await begun(cluster, job_id)
    [frozen] = cluster.workers
    os.kill(frozen.pid, signal.SIGSTOP)
    await asyncio.sleep(cluster.lease_s + 0.5)
    await cluster.start_workers(1)
    await cluster.until_ended([job_id], 60)
    stories = await read(cluster.store, {job_id: KEYFRAMES})
    os.kill(frozen.pid, signal.SIGCONT)
    await asyncio.sleep(cluster.lease_s)
    assert (await read(cluster.store, {job_id: KEYFRAMES}))[0].events == stories[0].events
    check(stories)
    assert stories[0].last == "completed" and stories[0].attempts == 2
    assert await cluster.end_worker(frozen) == 0, "it lives on, and stops when it is told to"


async def test_deadly_videos_fail_after_three_attempts_and_good_ones_finish(
    start: Callable[..., Any], video: Path, tmp_path: Path, extent: Extent
) -> None:
    cluster = await start(2, word_s=0.02)
    deadly_file = tmp_path / "deadly.mp4"
    deadly_file.write_bytes(video.read_bytes() + DEADLY_BOX)
    kills_worker = await cluster.add(video, **OPTIONS, seed=DEADLY_SEED)
    kills_decoder = await cluster.add(deadly_file, **OPTIONS)
    good = {await cluster.add(video, **OPTIONS): KEYFRAMES for _ in range(extent.good)}
    jobs = {**good, kills_worker: KEYFRAMES, kills_decoder: 0}
    await cluster.until_ended(list(jobs), 120)
    stories = await read(cluster.store, jobs)
    check(stories)
    told = {story.job_id: (story.last, story.attempts) for story in stories}
    assert told.pop(kills_worker) == ("attempts_exhausted", 3)
    assert told.pop(kills_decoder) in {
        ("decode_failed", 3),
        ("attempts_exhausted", 3),  # the other one's deaths cost it attempts, too,
        ("attempts_exhausted", 2),  # and may come before it has said that one begins
    }
    assert Counter(last for last, _ in told.values()) == {"completed": extent.good}


async def test_valkey_killed_loses_nothing_that_was_acknowledged(start: Callable[..., Any], video: Path) -> None:
    cluster = await start(2, word_s=0.1, lease_s=10)
    accepted = {await cluster.add(video, **OPTIONS): KEYFRAMES for _ in range(3)}
    for job_id in accepted:
        await begun(cluster, job_id)
    workers = [process.pid for process in cluster.workers]
    for down_s in (0.0, 2.0):
        before = {story.job_id: story.events for story in await read(cluster.store, accepted)}
        cluster.kill_valkey()
        await asyncio.sleep(down_s)
        cluster.start_valkey()
        back = time.time()
        accepted[await cluster.add(video, **OPTIONS)] = KEYFRAMES
        for story in await read(cluster.store, accepted):
            known = before.get(story.job_id, [])
            assert story.events[: len(known)] == known, "what was acknowledged is gone"
        await until_all_go_on(cluster, accepted, back)
    await cluster.until_ended(list(accepted), 60)
    assert [process.pid for process in cluster.workers] == workers, "no worker has ended for it"
    stories = await read(cluster.store, accepted)
    check(stories)
    assert {story.last for story in stories} == {"completed"}
    assert sum(story.attempts for story in stories) == len(accepted), "no attempt was lost"


async def until_all_go_on(cluster: Cluster, jobs: dict[str, int], since: float) -> None:
    """Wait until every job has ended, or has an event younger than `since`; fail after `BACK_WITHIN_S`."""
    async with asyncio.timeout(BACK_WITHIN_S - (time.time() - since)):
        while not all(
            s.events[-1].last or s.events[-1].at.timestamp() > since for s in await read(cluster.store, jobs)
        ):
            await asyncio.sleep(0.1)
    print(f"\nValkey killed: all {len(jobs)} jobs went on {time.time() - since:.1f} s after its start")


async def test_sigterm_gives_jobs_back_and_streams_end_with_a_retry_hint(
    start: Callable[..., Any], video: Path
) -> None:
    cluster = await start(1, gateway=True, drain_s=0.5)
    job_id = await cluster.post(video, **OPTIONS)
    await begun(cluster, job_id)
    before = time.time()
    assert await cluster.end_worker(cluster.workers[0]) == 0
    assert time.time() - before < 10
    assert await cluster.redis.zcard(LEASES) == 0, "it is given back, not left behind"

    async with cluster.http.stream("GET", f"/captions/{job_id}/events") as stream:
        lines = stream.aiter_lines()
        assert await anext(lines) == "retry: 2000"
        cluster.gateway.terminate()
        assert not any(line == "event: completed" for line in [line async for line in lines])
    assert await asyncio.to_thread(cluster.gateway.wait, 20) == 0

    await cluster.start_workers(1)
    await cluster.until_ended([job_id], 60)
    stories = await read(cluster.store, {job_id: KEYFRAMES})
    check(stories)
    assert stories[0].last == "completed" and stories[0].attempts == 2


async def test_a_rolling_restart_of_everything_loses_no_job(start: Callable[..., Any], video: Path) -> None:
    cluster = await start(2, gateway=True, word_s=0.1, drain_s=0.3)
    accepted: dict[str, int] = {}

    async def load() -> None:
        for _ in range(5):
            accepted[await cluster.post(video, **OPTIONS)] = KEYFRAMES
            await asyncio.sleep(0.3)

    loading = asyncio.create_task(load())
    await asyncio.sleep(1)
    for process in list(cluster.workers):
        await cluster.start_workers(1)
        assert await cluster.end_worker(process) == 0
    cluster.gateway.terminate()
    assert await asyncio.to_thread(cluster.gateway.wait, 20) == 0
    await cluster.start_gateway()
    cluster.valkey.terminate()
    await asyncio.to_thread(cluster.valkey.wait, 20)
    cluster.start_valkey()
    await loading
    await cluster.until_ended(list(accepted), 60)
    stories = await read(cluster.store, accepted)
    check(stories)
    assert Counter(story.last for story in stories) == {"completed": 5}


async def test_a_gateway_killed_before_it_wakes_a_worker(start: Callable[..., Any], video: Path) -> None:
    """The record is there, the wake-up is not: a reaper finds it."""
    cluster = await start(1)
    job_id = await cluster.add(video, wake=False, **OPTIONS)
    await cluster.until_ended([job_id], REWAKE_AFTER_S + 30)
    check(await read(cluster.store, {job_id: KEYFRAMES}))
