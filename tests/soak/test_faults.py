"""One kind of fault per test: frozen workers, deadly videos, a killed Valkey, rolling restarts under load."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.contract.store.keys import LEASES
from service.contract.store.leases import MAX_STRIKES, OUTAGE_S, REWAKE_AFTER_S
from tests.soak.cluster import Cluster
from tests.soak.conftest import KEYFRAMES, SECONDS, SoakSize
from tests.soak.history import check, read_histories
from tests.soak.worker import DEADLY_BOX, DEADLY_SEED

OPTIONS: dict[str, Any] = {"keyframes": "interval", "interval_s": "1"}
RESUME_WITHIN_S = 10.0


async def until_captioning(cluster: Cluster, job_id: str, differentials: int = 1) -> None:
    """Wait until the job has at least this many differentials."""
    async with asyncio.timeout(60):
        while len((await cluster.store.job(job_id)).differentials) < differentials:  # type: ignore[union-attr]
            await asyncio.sleep(0.02)


async def test_worker_frozen_past_its_lease_writes_nothing(start: Callable[..., Any], video: Path) -> None:
    cluster = await start(1, word_s=0.2)
    job_id = await cluster.add(video, **OPTIONS)
    await until_captioning(cluster, job_id)
    [frozen] = cluster.workers
    os.kill(frozen.pid, signal.SIGSTOP)
    await asyncio.sleep(cluster.lease_s + 0.5)
    await cluster.start_workers(1)
    await cluster.until_ended([job_id], 60)
    histories = await read_histories(cluster.store, {job_id: KEYFRAMES})
    os.kill(frozen.pid, signal.SIGCONT)
    await asyncio.sleep(cluster.lease_s)
    assert (await read_histories(cluster.store, {job_id: KEYFRAMES}))[0].events == histories[0].events
    check(histories)
    assert histories[0].outcome == "completed" and histories[0].attempts == 2
    assert await cluster.stop_worker(frozen) == 0, "the frozen worker continues and stops on SIGTERM"


async def test_deadly_videos_fail_after_three_attempts_and_good_ones_finish(
    start: Callable[..., Any], video: Path, tmp_path: Path, size: SoakSize
) -> None:
    """One deadly video after the other: a worker that dies costs each job that it holds an attempt."""
    cluster = await start(2, word_s=0.02)
    deadly_file = tmp_path / "deadly.mp4"
    deadly_file.write_bytes(video.read_bytes() + DEADLY_BOX)
    kills_decoder = await cluster.add(deadly_file, **OPTIONS)
    good = [await cluster.add(video, **OPTIONS) for _ in range(size.good // 2)]
    await cluster.until_ended([kills_decoder, *good], 120)
    kills_worker = await cluster.add(video, **OPTIONS, seed=DEADLY_SEED)
    good += [await cluster.add(video, **OPTIONS) for _ in range(size.good - len(good))]
    jobs = {**dict.fromkeys([*good, kills_worker], KEYFRAMES), kills_decoder: 0}
    await cluster.until_ended(list(jobs), 120)
    histories = await read_histories(cluster.store, jobs)
    check(histories)
    outcomes = {history.job_id: (history.outcome, history.attempts) for history in histories}
    assert outcomes.pop(kills_decoder) == ("decode_failed", 3)
    assert outcomes.pop(kills_worker) == ("attempts_exhausted", 3)
    assert Counter(outcome for outcome, _ in outcomes.values()) == {"completed": size.good}


async def test_killed_valkey_loses_no_acknowledged_write(start: Callable[..., Any], video: Path) -> None:
    cluster = await start(2, word_s=0.1, lease_s=10)
    accepted = {await cluster.add(video, **OPTIONS): KEYFRAMES for _ in range(3)}
    for job_id in accepted:
        await until_captioning(cluster, job_id)
    workers = [process.pid for process in cluster.workers]
    for down_s in (0.0, 2.0):
        before = {history.job_id: history.events for history in await read_histories(cluster.store, accepted)}
        cluster.kill_valkey()
        await asyncio.sleep(down_s)
        cluster.start_valkey()
        restarted_at = time.time()
        accepted[await cluster.add(video, **OPTIONS)] = KEYFRAMES
        for history in await read_histories(cluster.store, accepted):
            known = before.get(history.job_id, [])
            assert history.events[: len(known)] == known, "an acknowledged event is lost"
        await until_all_resume(cluster, accepted, restarted_at)
    await cluster.until_ended(list(accepted), 60)
    assert [process.pid for process in cluster.workers] == workers, "no worker stopped because of it"
    histories = await read_histories(cluster.store, accepted)
    check(histories)
    assert {history.outcome for history in histories} == {"completed"}
    assert sum(history.attempts for history in histories) == len(accepted), "no attempt was lost"


async def until_all_resume(cluster: Cluster, jobs: dict[str, int], since: float) -> None:
    """Wait until every job has ended or has an event newer than `since`; fail after `RESUME_WITHIN_S`."""
    async with asyncio.timeout(RESUME_WITHIN_S - (time.time() - since)):
        while not all(
            s.events[-1].last or s.events[-1].at.timestamp() > since for s in await read_histories(cluster.store, jobs)
        ):
            await asyncio.sleep(0.1)
    print(f"\nValkey killed: all {len(jobs)} jobs resumed {time.time() - since:.1f} s after its restart")


async def test_frozen_valkey_costs_no_job_an_attempt(start: Callable[..., Any], video: Path, size: SoakSize) -> None:
    """Each outage outlasts the leases, and no job finishes a text between them, so no text resets the strikes."""
    cluster = await start(2, word_s=1.0, lease_s=size.lease_s)
    jobs = {await cluster.add(video, keyframes="interval", interval_s=SECONDS): 2 for _ in range(4)}
    await until_all_started(cluster, list(jobs))
    for _ in range(MAX_STRIKES):
        cluster.valkey.send_signal(signal.SIGSTOP)
        await asyncio.sleep(max(OUTAGE_S + 2, 1.2 * size.lease_s))
        cluster.valkey.send_signal(signal.SIGCONT)
        await asyncio.sleep(1)
    await cluster.until_ended(list(jobs), 120)
    histories = await read_histories(cluster.store, jobs)
    check(histories)
    assert [(history.outcome, history.attempts) for history in histories] == [("completed", 1)] * len(jobs)


async def until_all_started(cluster: Cluster, jobs: list[str]) -> None:
    async with asyncio.timeout(60):
        while not all([(await cluster.store.job(job_id)).attempts for job_id in jobs]):  # type: ignore[union-attr]
            await asyncio.sleep(0.02)


async def test_frozen_worker_that_took_a_wakeup_delays_one_job(start: Callable[..., Any], video: Path) -> None:
    """An idle worker waits inside Redis for the next wake-up, and receives it even if it is frozen."""
    cluster = await start(2)
    async with asyncio.timeout(30):
        while sum("b" in client["flags"] for client in await cluster.redis.client_list()) < 2:
            await asyncio.sleep(0.05)
    frozen = cluster.workers[0]
    os.kill(frozen.pid, signal.SIGSTOP)
    jobs, delays_s = {}, []
    for _ in range(4):
        added_at = time.monotonic()
        job_id = await cluster.add(video, **OPTIONS)
        await until_all_started(cluster, [job_id])
        delays_s.append(time.monotonic() - added_at)
        jobs[job_id] = KEYFRAMES
    print(f"\none of two workers frozen: jobs started after {', '.join(f'{delay_s:.1f}' for delay_s in delays_s)} s")
    await cluster.until_ended(list(jobs), 60)
    os.kill(frozen.pid, signal.SIGCONT)
    histories = await read_histories(cluster.store, jobs)
    check(histories)
    assert [(history.outcome, history.attempts) for history in histories] == [("completed", 1)] * len(jobs)
    assert REWAKE_AFTER_S < max(delays_s) < REWAKE_AFTER_S + RESUME_WITHIN_S, "the frozen worker took one wake-up"


async def test_sigterm_releases_jobs_and_ends_streams(start: Callable[..., Any], video: Path) -> None:
    cluster = await start(1, gateway=True, drain_s=0.5)
    job_id = await cluster.post(video, **OPTIONS)
    await until_captioning(cluster, job_id)
    before = time.time()
    assert await cluster.stop_worker(cluster.workers[0]) == 0
    assert time.time() - before < 10
    assert await cluster.redis.zcard(LEASES) == 0, "the job is released, not left to the reaper"

    async with cluster.http.stream("GET", f"/captions/{job_id}/events") as stream:
        lines = stream.aiter_lines()
        assert await anext(lines) == "retry: 2000"
        cluster.gateway.terminate()
        assert not any(line == "event: completed" for line in [line async for line in lines])
    assert await asyncio.to_thread(cluster.gateway.wait, 20) == 0

    await cluster.start_workers(1)
    await cluster.until_ended([job_id], 60)
    histories = await read_histories(cluster.store, {job_id: KEYFRAMES})
    check(histories)
    assert histories[0].outcome == "completed" and histories[0].attempts == 2


async def test_rolling_restart_loses_no_job(start: Callable[..., Any], video: Path) -> None:
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
        assert await cluster.stop_worker(process) == 0
    cluster.gateway.terminate()
    assert await asyncio.to_thread(cluster.gateway.wait, 20) == 0
    await cluster.start_gateway()
    cluster.valkey.terminate()
    await asyncio.to_thread(cluster.valkey.wait, 20)
    cluster.start_valkey()
    await loading
    await cluster.until_ended(list(accepted), 60)
    histories = await read_histories(cluster.store, accepted)
    check(histories)
    assert Counter(history.outcome for history in histories) == {"completed": 5}


async def test_reaper_wakes_a_worker_for_a_job_without_wakeup(start: Callable[..., Any], video: Path) -> None:
    """The gateway was killed after it created the record and before it sent the wake-up."""
    cluster = await start(1)
    job_id = await cluster.add(video, wake=False, **OPTIONS)
    await cluster.until_ended([job_id], REWAKE_AFTER_S + 30)
    check(await read_histories(cluster.store, {job_id: KEYFRAMES}))
