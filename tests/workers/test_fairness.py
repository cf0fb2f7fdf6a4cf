"""Fairness between API keys: no key holds all slots, the queue or the engine, and downloads take no video slot."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path

import pytest

from service.contract.jobs import JobState, JobStatus
from service.contract.sandbox.probe import VideoInfo, VideoLimits, probe
from service.contract.sandbox.subprocesses import ChildStarter
from service.contract.store.keys import LEASES
from service.contract.store.turns import FETCH
from tests.fake_captioner import FakeCaptioner
from tests.hostile_server import HostileServer, endless, hostile_server
from tests.workers.conftest import Bench
from workers.models.engine import Done, Piece, Turn
from workers.tasks import JobRunner
from workers.video import keyframes

DRIP_BYTES_PER_S = 70_000
MAX_SEQUENCES = 64
"""How many sequences the scripted engine runs at once."""
STEP_S = 0.0005
"""Time of the scripted engine's step for each sequence that runs."""
WORDS = 20


class BusyCaptioner(FakeCaptioner):
    """An engine with the cost of beams: each takes a place in the batch, and a step takes longer the larger it is.

    Requests are admitted in the order of their arrival.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sequences = 0
        self._admission = asyncio.Lock()
        self._freed = asyncio.Event()

    async def generate(self, turn: Turn, request_id: str) -> AsyncGenerator[Piece | Done, None]:
        beams = turn.decoding.num_beams
        async with self._admission:
            while self.sequences + beams > MAX_SEQUENCES:
                self._freed.clear()
                await self._freed.wait()
            self.sequences += beams
        try:
            for _ in range(WORDS):
                await asyncio.sleep(STEP_S * self.sequences)
            async with contextlib.aclosing(super().generate(turn, request_id)) as parts:
                async for part in parts:
                    yield part
        finally:
            self.sequences -= beams
            self._freed.set()


@pytest.fixture
async def server() -> AsyncIterator[HostileServer]:
    async with hostile_server() as served:
        yield served


async def deliver(runner: JobRunner, queue: str, job_ids: Sequence[str]) -> None:
    """Hand over the wake-ups of one queue as RQ does: one after the other, while the runner listens to the queue."""
    for job_id in job_ids:
        while queue not in runner.open_queues:
            await asyncio.sleep(0.02)
        await asyncio.to_thread(runner.run_job, job_id)


async def run(bench: Bench, runner: JobRunner, queue: str, job_id: str, timeout_s: float) -> JobState:
    async with asyncio.timeout(timeout_s):
        await deliver(runner, queue, [job_id])
        return await bench.ended(job_id)


async def seconds_of_a_recaption(bench: Bench, runner: JobRunner) -> float:
    bench.owner = "sc_patient"
    started_at = time.monotonic()
    job = await run(bench, runner, "recaption", await bench.recaption("a cat"), 60)
    assert job.status is JobStatus.COMPLETED
    return time.monotonic() - started_at


async def test_downloads_that_drip_do_not_delay_an_upload(bench: Bench, server: HostileServer, clip: Path) -> None:
    head = "HTTP/1.1 200 OK\r\nContent-Length: 20000000\r\n\r\n"
    server.answers["/drip"] = endless(head, b"y" * (DRIP_BYTES_PER_S // 10), 0.1)
    runner = bench.runner(FakeCaptioner(), slots=4, allowed_hosts=server.hosts, min_free_bytes=0)
    bench.owner = "sc_greedy"
    await deliver(runner, FETCH, [await bench.url(server.url("/drip")) for _ in range(4)])
    async with asyncio.timeout(10):
        while server.open < 4:
            await asyncio.sleep(0.02)
    bench.owner = "sc_patient"
    assert (await run(bench, runner, "video", await bench.video(clip), 20)).status is JobStatus.COMPLETED
    assert server.open == 4, "the downloads still run"


async def test_long_videos_of_one_key_leave_a_slot_free(bench: Bench, clip: Path) -> None:
    runner = bench.runner(FakeCaptioner(delay_s=600), slots=4)
    bench.owner = "sc_greedy"
    jobs = [await bench.video(clip) for _ in range(8)]
    await deliver(runner, "video", jobs)
    bench.owner = "sc_patient"
    patient = await bench.video(clip)
    await run_until_claimed(bench, runner, patient)
    assert await bench.store.redis.zcard(LEASES) == 4, "three of the greedy key, one of the patient one"
    for job_id in [*jobs, patient]:
        await bench.store.cancel(job_id)


async def test_slow_decoding_of_one_key_leaves_a_decoder_free(
    bench: Bench, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.owner = "sc_greedy"
    slow = [await bench.video(clip) for _ in range(3)]
    decoding: list[str] = []

    async def slow_probe(video: Path, limits: VideoLimits, starter: ChildStarter | None) -> VideoInfo:
        if any(job_id in str(video) for job_id in slow):
            decoding.append(str(video))
            await asyncio.sleep(600)
        return await probe(video, limits, starter)

    monkeypatch.setattr(keyframes, "probe", slow_probe)
    runner = bench.runner(FakeCaptioner(), slots=8, decoders=2)
    await deliver(runner, "video", slow)
    bench.owner = "sc_patient"
    assert (await run(bench, runner, "video", await bench.video(clip), 20)).status is JobStatus.COMPLETED
    assert len(decoding) == 1, "one decoder of two is the key's share"


async def test_an_idle_worker_takes_what_another_one_had_no_room_for(bench: Bench, clip: Path) -> None:
    busy = bench.runner(FakeCaptioner(delay_s=600), slots=2)
    bench.owner = "sc_greedy"
    jobs = [await bench.video(clip) for _ in range(2)]
    await deliver(busy, "video", jobs)
    assert await bench.store.redis.zcard(LEASES) == 1, "one slot of two is the key's share"
    idle = bench.runner(FakeCaptioner(), slots=2)
    assert (await bench.ended(jobs[1], 20)).status is JobStatus.COMPLETED
    assert idle.open_queues


async def run_until_claimed(bench: Bench, runner: JobRunner, job_id: str) -> None:
    async with asyncio.timeout(20):
        await deliver(runner, "video", [job_id])
    await bench.until(job_id, lambda job: job.status is JobStatus.RUNNING, 20)


async def test_beams_of_one_key_do_not_delay_another_keys_recaption(bench: Bench) -> None:
    runner = bench.runner(BusyCaptioner(), slots=4)
    idle_s = await seconds_of_a_recaption(bench, runner)
    bench.owner = "sc_greedy"
    jobs = [await bench.recaption("a dog", num_beams=8) for _ in range(100)]
    delivery = asyncio.create_task(deliver(runner, "recaption", jobs))
    await asyncio.sleep(1)
    busy_s = [await seconds_of_a_recaption(bench, runner) for _ in range(3)]
    print(f"recaption of another key: idle {idle_s:.2f} s, behind 100 jobs of 8 beams {max(busy_s):.2f} s")
    assert max(busy_s) < 2.5
    await delivery
    for job_id in jobs:
        assert (await bench.ended(job_id)).status is JobStatus.COMPLETED
