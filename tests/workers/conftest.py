"""A worker in the test process with a scripted model. Everything else is real, including the store and the sandbox."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from service.contract.events import Event
from service.contract.jobs import (
    ClipOptions,
    JobKind,
    JobState,
    Options,
    RecaptionOptions,
    Record,
    Source,
    VideoOptions,
    new_job_id,
)
from service.contract.storage.backends import open_storage
from service.contract.storage.local import upload_path
from service.contract.store.store import RetryingStore, Store
from service.contract.store.wakeups import Wakeups
from service.contract.store.worker_cards import WorkerCard
from tests.fake_captioner import FakeCaptioner, FakeEncoder
from workers.attempt import WorkerContext
from workers.settings import Settings
from workers.tasks import JobRunner
from workers.video.decoders import Decoders


@dataclass
class Bench:
    """Creates jobs, runs workers and reads the results."""

    store: Store
    redis_url: str
    data_dir: Path
    runners: list[JobRunner] = field(default_factory=list)
    owner: str | None = None
    """Id of the API key of the jobs that are created from now on."""

    def runner(
        self, captioner: FakeCaptioner, slots: int = 4, encoder: FakeEncoder | None = None, **worker_settings: Any
    ) -> JobRunner:
        """Start a worker on this event loop. `worker_settings` override the defaults."""
        values = {
            "redis_url": self.redis_url,
            "data_dir": self.data_dir,
            "slots": slots,
            "decoders": 4,
            **worker_settings,
        }
        settings = Settings(**values)
        store, wakeups = RetryingStore(self.store.redis), Wakeups(self.redis_url)
        encoder = encoder or FakeEncoder()
        storage, decoders = open_storage(settings), Decoders(settings.decoders, settings.key_share)
        context = WorkerContext(settings, storage, captioner, encoder, decoders, find_job=store.job)
        card = WorkerCard(id=f"test-{len(self.runners)}", model="fake", slots=slots)
        runner = JobRunner(context, store, wakeups, card, on_engine_death=lambda: None)
        self.runners.append(runner)
        return runner

    async def video(self, clip: Path, **options: Any) -> str:
        job_id = await self._create(JobKind.VIDEO, VideoOptions(**options), Source(filename=clip.name))
        upload = upload_path(self.data_dir, job_id)
        upload.parent.mkdir(parents=True, exist_ok=True)
        upload.write_bytes(clip.read_bytes())
        return job_id

    async def url(self, url: str, **options: Any) -> str:
        return await self._create(JobKind.VIDEO, VideoOptions(**options), Source(url=url))

    async def clip(self, parent: str, start_s: float, end_s: float) -> str:
        return await self._create(JobKind.CLIP, ClipOptions(start_s=start_s, end_s=end_s), parent=parent)

    async def recaption(self, prompt: str, **options: Any) -> str:
        return await self._create(JobKind.RECAPTION, RecaptionOptions(prompt=prompt, **options))

    async def _create(
        self, kind: JobKind, options: Options, source: Source | None = None, parent: str | None = None
    ) -> str:
        now = datetime.now(UTC)
        record = Record(
            id=new_job_id(),
            kind=kind,
            options=options,
            source=source,
            parent=parent,
            owner=self.owner,
            created_at=now,
        )
        assert await self.store.create(record)
        return record.id

    async def run(self, runner: JobRunner, job_id: str) -> JobState:
        """Pass the job to `runner` as RQ does, and return the job when it has ended."""
        await asyncio.to_thread(runner.run_job, job_id)
        return await self.ended(job_id)

    async def ended(self, job_id: str, timeout_s: float = 120) -> JobState:
        return await self.until(job_id, lambda job: job.status.ended, timeout_s)

    async def until(self, job_id: str, condition: Callable[[JobState], bool], timeout_s: float = 120) -> JobState:
        """Return the job as soon as `condition(job)` is true."""
        async with asyncio.timeout(timeout_s):
            while True:
                job = await self.store.job(job_id)
                assert job is not None
                if condition(job):
                    return job
                await asyncio.sleep(0.02)

    async def events(self, job_id: str) -> list[Event]:
        """Return the job's events. Asserts that their sequence has no gaps and that nothing follows a final event."""
        async with aclosing(self.store.events(job_id)) as stored:  # type: ignore[type-var]
            events = [event async for event in stored]
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert not any(event.last for event in events[:-1])
        return [event.event for event in events]


@pytest.fixture
async def bench(store: Store, redis_url: str, tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(store, redis_url, tmp_path / "data")
    yield bench
    for runner in bench.runners:
        await runner.stop(0)
