"""A job that exceeds its deadline fails exactly once, at any stage, and keeps the captions it has."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.contract.events import Failed, Started
from service.contract.jobs import JobKind, JobStatus, RecaptionOptions, Record, new_job_id
from service.contract.storage.local import LocalStorage, upload_path
from service.contract.store.keys import LEASES, QUEUED, job_key
from service.contract.store.reaper import Reaper
from service.contract.store.wakeups import Wakeups
from tests.fake_captioner import FakeCaptioner
from tests.workers.clips import numbered, write
from tests.workers.conftest import Bench


async def final_error_code(bench: Bench, job_id: str) -> str:
    """Return the error code of the job's final event, which must be `failed`."""
    last = (await bench.events(job_id))[-1]
    assert isinstance(last, Failed)
    return last.error.code


async def test_a_running_job_keeps_its_captions(bench: Bench, tmp_path: Path) -> None:
    captioner = FakeCaptioner(["one", "two", "word " * 4000], delay_s=0.05)
    clip = write(tmp_path / "clip.mp4", [numbered(k) for k in range(80)], fps=10)
    start = time.monotonic()
    job_id = await bench.video(clip, keyframes="interval", deadline_s=6.0)
    job = await bench.run(bench.runner(captioner), job_id)
    assert time.monotonic() - start == pytest.approx(6, abs=3)
    assert await final_error_code(bench, job_id) == "deadline_exceeded"
    assert job.error is not None and job.error.retryable and "6 s" in job.error.detail
    assert [d.text for d in job.differentials] == ["one", "two"]
    assert not captioner.running
    assert not upload_path(bench.data_dir, job_id).exists()


async def test_a_job_claimed_after_its_deadline_makes_no_model_call(bench: Bench) -> None:
    captioner = FakeCaptioner()
    record = Record(
        id=new_job_id(),
        kind=JobKind.RECAPTION,
        options=RecaptionOptions(prompt="a cat", deadline_s=60),
        created_at=datetime.now(UTC) - timedelta(seconds=61),
    )
    assert await bench.store.create(record)
    await bench.run(bench.runner(captioner), record.id)
    assert await final_error_code(bench, record.id) == "deadline_exceeded"
    assert not captioner.turns


async def test_a_job_within_its_deadline_completes(bench: Bench) -> None:
    job = await bench.run(bench.runner(FakeCaptioner()), await bench.recaption("a cat", deadline_s=60))
    assert job.status is JobStatus.COMPLETED


async def reap(bench: Bench) -> None:
    await Reaper(bench.store, Wakeups(bench.redis_url), LocalStorage(bench.data_dir)).reap()


async def test_the_reaper_fails_a_late_job_that_no_worker_claimed(bench: Bench) -> None:
    late, early = await bench.recaption("late", deadline_s=0.05), await bench.recaption("early", deadline_s=60)
    await bench.store.redis.zadd(QUEUED, {late: 1, early: 1})  # as if woken long ago
    await asyncio.sleep(0.1)
    await reap(bench)
    assert await final_error_code(bench, late) == "deadline_exceeded"
    assert (await bench.store.kind_and_status(early)) == (JobKind.RECAPTION, JobStatus.QUEUED)
    assert await bench.store.claim(late) is None
    assert await bench.store.redis.zscore(QUEUED, late) is None


async def test_the_reaper_fails_a_late_job_only_after_its_lease_expired(bench: Bench) -> None:
    job_id = await bench.recaption("a cat", deadline_s=0.05)
    lease = await bench.store.claim(job_id)
    assert lease is not None
    await bench.store.append(lease, 2, Started(attempt=1))
    await asyncio.sleep(0.1)
    await reap(bench)
    assert (await bench.store.kind_and_status(job_id)) == (JobKind.RECAPTION, JobStatus.RUNNING), "still leased"
    await bench.store.redis.hset(job_key(job_id), "until", 1)
    await bench.store.redis.zadd(LEASES, {job_id: 1})
    await reap(bench)
    assert await final_error_code(bench, job_id) == "deadline_exceeded"
