"""Claims, leases and outcomes: two workers, lost connections, cancellation, failures."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from service.contract.errors import EngineFailed
from service.contract.events import Caption, Delta, Event, Failed, Keyframes, Started, Video
from service.contract.jobs import JobKind, JobStatus
from service.contract.storage.local import LocalStorage, keyframes_dir, upload_path
from service.contract.store import leases
from service.contract.store.keys import LEASES, QUEUED, events_key, job_key
from service.contract.store.leases import MAX_STALLS, MAX_STRIKES, Lease
from service.contract.store.reaper import Reaper
from service.contract.store.store import RetryingStore, Store
from service.contract.store.wakeups import Wakeups
from tests.fake_captioner import FakeCaptioner, FakeEncoder
from tests.workers.clips import numbered, write
from tests.workers.conftest import Bench
from workers import tasks
from workers.models.engine import Features
from workers.publisher import Publisher
from workers.tasks import JobRunner


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write(tmp_path / "clip.mp4", [numbered(k) for k in range(80)], fps=10)


async def expire_lease(bench: Bench, job_id: str) -> None:
    """Expire the job's lease, as if its worker had frozen, and let a reaper notice."""
    await bench.store.redis.hset(job_key(job_id), "until", 1)
    assert await bench.store.reap(job_id)


async def test_a_second_worker_continues_at_the_first_missing_differential(bench: Bench, clip: Path) -> None:
    slow, quick = FakeCaptioner(["one", "two", "three " * 400], delay_s=0.02), FakeCaptioner(["THREE", "FOUR"])
    first, second = bench.runner(slow), bench.runner(quick)
    job_id = await bench.video(clip, keyframes="interval")
    await asyncio.to_thread(first.run_job, job_id)
    await bench.until(job_id, lambda job: len(job.differentials) == 2)
    async with asyncio.timeout(30):
        while not any(isinstance(e, Delta) and e.keyframe == 2 for e in await bench.events(job_id)):
            await asyncio.sleep(0.05)
    await expire_lease(bench, job_id)
    job = await bench.run(second, job_id)

    assert job.status is JobStatus.COMPLETED
    assert job.attempts == 2
    assert [d.text for d in job.differentials[:4]] == ["one", "two", "THREE", "FOUR"]
    assert quick.turns[0].prompt.endswith("What happend before is: two")
    assert len(job.differentials) == len(job.keyframes) == 5
    events = await bench.events(job_id)
    assert sum(isinstance(e, Video) for e in events) == 1
    assert [e.attempt for e in events if isinstance(e, Started)] == [1, 2]
    async with asyncio.timeout(30):
        while slow.running:  # the fenced worker stops generating and publishes nothing
            await asyncio.sleep(0.05)
    assert await bench.events(job_id) == events


class GatedEncoder(FakeEncoder):
    """Encodes at least `frames` frames, then blocks."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self._frames = frames

    async def encode(self, images: Sequence[Image.Image]) -> Features:
        if sum(self.batches) >= self._frames:
            await asyncio.Event().wait()
        return await super().encode(images)


async def test_a_second_worker_continues_selecting_keyframes(bench: Bench, clip: Path) -> None:
    options = {"interval_s": 0.2, "similarity_threshold": 0.9}
    complete = await bench.run(bench.runner(FakeCaptioner()), await bench.video(clip, **options))
    assert 5 < len(complete.keyframes) < 40

    job_id = await bench.video(clip, **options)
    await asyncio.to_thread(bench.runner(FakeCaptioner(), encoder=GatedEncoder(16)).run_job, job_id)
    partial = await bench.until(job_id, lambda job: len(job.keyframes) >= 2)
    await expire_lease(bench, job_id)
    job = await bench.run(bench.runner(FakeCaptioner()), job_id)
    assert len(partial.keyframes) < len(job.keyframes)
    assert [k.time_s for k in job.keyframes] == [k.time_s for k in complete.keyframes]
    assert [k.index for k in job.keyframes] == list(range(len(job.keyframes)))
    assert sum(e.complete for e in await bench.events(job_id) if isinstance(e, Keyframes)) == 1


async def test_released_jobs_are_finished_by_the_next_worker(bench: Bench, clip: Path) -> None:
    captioner = FakeCaptioner(delay_s=0.3)
    runner = bench.runner(captioner)
    job_id = await bench.video(clip, keyframes="interval")
    await asyncio.to_thread(runner.run_job, job_id)
    await bench.until(job_id, lambda job: len(job.differentials) == 1 and len(captioner.running) == 1)
    await runner.stop(0)
    assert not captioner.running
    assert len(captioner.aborted) == 1
    with Redis.from_url(bench.redis_url) as redis:
        assert redis.llen("rq:queue:resumed") == 1, "a wake-up was sent"
    job = await bench.run(bench.runner(FakeCaptioner()), job_id)
    assert (job.status, job.attempts) == (JobStatus.COMPLETED, 2)
    assert not await bench.store.redis.exists("sharecap:worker:test-0")


async def test_a_stopping_worker_lets_running_jobs_finish(bench: Bench) -> None:
    runner = bench.runner(FakeCaptioner(["a few words"], delay_s=0.1))
    job_id = await bench.recaption("a cat")
    await asyncio.to_thread(runner.run_job, job_id)
    await runner.stop(30)
    job = await bench.ended(job_id)
    assert (job.status, job.attempts) == (JobStatus.COMPLETED, 1)
    late = await bench.recaption("a dog")
    await asyncio.to_thread(runner.run_job, late)
    assert (await bench.store.kind_and_status(late)) == (JobKind.RECAPTION, JobStatus.QUEUED)


async def test_the_lease_is_renewed_during_a_long_model_call(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LEASE_S", 2.0)
    monkeypatch.setattr(tasks, "RENEW_EVERY_S", 0.6)
    runner, other = bench.runner(FakeCaptioner(delay_s=60)), bench.runner(FakeCaptioner())
    job_id = await bench.recaption("a cat")
    await asyncio.to_thread(runner.run_job, job_id)
    await asyncio.sleep(2.5)
    assert not await bench.store.reap(job_id), "the lease has not expired"
    await asyncio.to_thread(other.run_job, job_id)
    job = await bench.store.job(job_id)
    assert job is not None and job.attempts == 1, "no other worker can claim it"


async def test_cancelling_stops_the_model(bench: Bench, clip: Path) -> None:
    captioner = FakeCaptioner(delay_s=600)
    job_id = await bench.video(clip)
    await asyncio.to_thread(bench.runner(captioner).run_job, job_id)
    async with asyncio.timeout(30):
        while not captioner.running:
            await asyncio.sleep(0.02)
    start = time.monotonic()
    await bench.store.cancel(job_id)
    job = await bench.ended(job_id)
    assert job.status is JobStatus.CANCELLED
    assert time.monotonic() - start < 10
    assert len(captioner.aborted) == 1 and not captioner.running
    await bench.events(job_id)
    assert not upload_path(bench.data_dir, job_id).exists()


async def test_a_write_notices_the_cancellation(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "RENEW_EVERY_S", 60.0)
    captioner = FakeCaptioner(["word " * 1000], delay_s=0.05)
    job_id = await bench.recaption("a cat")
    await asyncio.to_thread(bench.runner(captioner).run_job, job_id)
    await bench.until(job_id, lambda job: job.status is JobStatus.RUNNING)
    start = time.monotonic()
    await bench.store.cancel(job_id)
    assert (await bench.ended(job_id)).status is JobStatus.CANCELLED
    assert time.monotonic() - start < 20, "long before the next renewal"


async def test_a_job_deleted_while_running_leaves_no_files_or_keys(bench: Bench, clip: Path) -> None:
    captioner = FakeCaptioner(delay_s=0.05)
    job_id = await bench.video(clip, keyframes="interval")
    await asyncio.to_thread(bench.runner(captioner).run_job, job_id)
    await bench.until(job_id, lambda job: len(job.differentials) == 1)
    await bench.store.delete(job_id)
    async with asyncio.timeout(30):
        while keyframes_dir(bench.data_dir, job_id).exists():
            await asyncio.sleep(0.05)
    assert not captioner.running
    assert await bench.store.redis.keys(f"*{job_id}*") == []


async def failure(bench: Bench, captioner: FakeCaptioner, job_id: str) -> Failed:
    """Run the job, which must fail, and return its only `failed` event."""
    job = await bench.run(bench.runner(captioner), job_id)
    assert job.status is JobStatus.FAILED
    [failed] = [e for e in await bench.events(job_id) if isinstance(e, Failed)]
    return failed


async def test_a_file_that_is_not_a_video_fails_and_is_deleted(bench: Bench, tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("not a video at all" * 100)
    job_id = await bench.video(text)
    failed = await failure(bench, FakeCaptioner(), job_id)
    assert (failed.error.code, failed.error.retryable) == ("not_a_video", False)
    assert not upload_path(bench.data_dir, job_id).exists()


async def test_a_missing_upload_fails(bench: Bench, clip: Path) -> None:
    job_id = await bench.video(clip)
    upload_path(bench.data_dir, job_id).unlink()
    assert (await failure(bench, FakeCaptioner(), job_id)).error.code == "not_found"


async def test_an_unexpected_error_does_not_leak_details(bench: Bench, clip: Path) -> None:
    captioner = FakeCaptioner(["one", RuntimeError("secret/path.py line 3")])
    failed = await failure(bench, captioner, await bench.video(clip))
    assert failed.error.code == "engine_failed"
    assert "secret" not in failed.error.detail
    assert captioner.alive


async def test_a_dead_engine_ends_the_worker_and_its_jobs_get_three_attempts(bench: Bench) -> None:
    job_id = await bench.recaption("a cat")
    for attempt in (1, 2, 3):
        runner = bench.runner(FakeCaptioner([EngineFailed("The captioning engine stopped.")]))
        await asyncio.to_thread(runner.run_job, job_id)
        async with asyncio.timeout(10):
            while not runner.engine_died or await bench.store.redis.zrange("sharecap:leases", 0, -1):
                await asyncio.sleep(0.02)
        await asyncio.to_thread(runner.run_job, job_id)
        job = await bench.store.job(job_id)
        assert job and (job.attempts, job.status.ended) == (attempt, attempt == 3), "it takes no more jobs"
    assert job.error and (job.error.code, job.error.retryable) == ("engine_failed", True)
    assert len([e for e in await bench.events(job_id) if isinstance(e, Failed)]) == 1


async def stall(bench: Bench, job_id: str) -> JobRunner:
    """Run the job on a worker whose engine hangs, until the worker holds no job and has stopped."""
    captioner = FakeCaptioner([EngineFailed("The captioning engine stopped.")])
    captioner.stalled = True
    runner = bench.runner(captioner)
    await asyncio.to_thread(runner.run_job, job_id)
    async with asyncio.timeout(10):
        while not runner.engine_died or await bench.store.redis.zrange("sharecap:leases", 0, -1):
            await asyncio.sleep(0.02)
    await runner.stop(0)
    return runner


async def test_a_stalled_engine_ends_the_worker_and_its_jobs_get_no_strike(bench: Bench) -> None:
    job_id = await bench.recaption("a cat")
    await stall(bench, job_id)
    assert await bench.store.redis.hmget(job_key(job_id), ["strikes", "stalls"]) == [None, "1"]
    assert [card.engine for card in await bench.store.worker_cards()] == ["stalled"]
    assert (await bench.run(bench.runner(FakeCaptioner()), job_id)).status is JobStatus.COMPLETED


async def engine_dies(runner: JobRunner, captioner: FakeCaptioner, *, stalled: bool) -> None:
    """Let the engine die while its turns are unanswered, and stop the worker as soon as it notices."""
    captioner.stalled, captioner.alive = stalled, False
    async with asyncio.timeout(10):
        while not runner.engine_died:
            await asyncio.sleep(0.02)
    await runner.stop(0)


@pytest.mark.parametrize(("stalled", "counts"), [(True, [None, "1"]), (False, ["1", None])], ids=["stalled", "died"])
async def test_a_dead_engine_counts_against_the_jobs_that_had_a_turn_in_it(
    bench: Bench, clip: Path, stalled: bool, counts: list[str | None]
) -> None:
    captioner, encoder = FakeCaptioner(delay_s=60), GatedEncoder(0)
    runner = bench.runner(captioner, encoder=encoder)
    answering, selecting = await bench.recaption("a cat"), await bench.video(clip)
    for job_id in (answering, selecting):
        await asyncio.to_thread(runner.run_job, job_id)
    await bench.until(selecting, lambda job: job.interval_s is not None)
    await bench.until(answering, lambda _: len(captioner.running) == 1)
    await engine_dies(runner, captioner, stalled=stalled)
    for job_id, expected in ((answering, counts), (selecting, [None, None])):
        assert await bench.store.redis.hmget(job_key(job_id), ["strikes", "stalls"]) == expected
        assert (await bench.run(bench.runner(FakeCaptioner()), job_id)).status is JobStatus.COMPLETED


async def test_a_job_that_is_cancelled_while_the_engine_is_dead_ends_cancelled(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "RENEW_EVERY_S", 0.1)
    captioner = FakeCaptioner(delay_s=60)
    runner = bench.runner(captioner)
    job_id = await bench.recaption("a cat")
    await asyncio.to_thread(runner.run_job, job_id)
    await bench.until(job_id, lambda _: len(captioner.running) == 1)
    captioner.alive = False
    await bench.store.cancel(job_id)
    assert (await bench.ended(job_id)).status is JobStatus.CANCELLED


async def test_a_job_that_stalls_every_engine_gets_five_attempts(bench: Bench) -> None:
    job_id = await bench.recaption("a cat")
    for attempt in range(1, MAX_STALLS + 1):
        await stall(bench, job_id)
        job = await bench.store.job(job_id)
        assert job and (job.attempts, job.status.ended) == (attempt, attempt == MAX_STALLS)
    assert job.error and (job.error.code, job.error.retryable) == ("engine_failed", True)
    assert "hung in 5 attempts in a row" in job.error.detail
    assert len([e for e in await bench.events(job_id) if isinstance(e, Failed)]) == 1


@pytest.mark.parametrize(
    "case", [("SIGSEGV", "ended early", False), ("SIGKILL", "ran out of memory", True)], ids=lambda case: case[0]
)
async def test_a_job_that_kills_its_decoder_gets_three_attempts(
    bench: Bench, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: tuple[str, str, bool]
) -> None:
    signal, detail, retryable = case
    child = tmp_path / "child.py"
    child.write_text(f"import os, signal; os.kill(os.getpid(), signal.{signal})")
    monkeypatch.setattr("workers.video.frames.CHILD", child)
    runner, job_id = bench.runner(FakeCaptioner()), await bench.video(clip)
    for attempt in (1, 2, 3):
        await asyncio.to_thread(runner.run_job, job_id)
        job = await bench.until(job_id, lambda job: job.attempts == attempt)  # noqa: B023
        async with asyncio.timeout(30):
            while await bench.store.redis.zrange("sharecap:leases", 0, -1):
                await asyncio.sleep(0.02)
    job = await bench.ended(job_id)
    assert job.error and (job.error.code, job.error.retryable) == ("decode_failed", retryable)
    assert detail in job.error.detail
    assert not upload_path(bench.data_dir, job_id).exists()


async def test_a_job_continues_after_redis_lost_its_last_events(bench: Bench, clip: Path) -> None:
    captioner = FakeCaptioner(delay_s=0.3)
    runner = bench.runner(captioner)
    job_id = await bench.video(clip, keyframes="interval")
    await asyncio.to_thread(runner.run_job, job_id)
    await bench.until(job_id, lambda job: len(job.differentials) == 1)
    earlier = await bench.store.redis.dump(events_key(job_id))
    await bench.until(job_id, lambda job: len(job.differentials) == 2)
    await bench.store.redis.restore(events_key(job_id), 0, earlier, replace=True)
    async with asyncio.timeout(10):
        while not await bench.store.redis.zrange("sharecap:queued", 0, -1):
            await asyncio.sleep(0.02)
    job = await bench.run(runner, job_id)
    assert (job.status, job.attempts) == (JobStatus.COMPLETED, 2)
    assert [d.keyframe for d in job.differentials] == [k.index for k in job.keyframes] == [0, 1, 2, 3, 4]
    await bench.events(job_id)


async def test_a_worker_can_reclaim_a_job_whose_lease_it_lost(bench: Bench, clip: Path) -> None:
    """The lease expired during a Redis outage; the same worker is woken for the job before it notices."""
    captioner = FakeCaptioner(delay_s=0.2)
    runner = bench.runner(captioner)
    job_id = await bench.video(clip, keyframes="interval")
    await asyncio.to_thread(runner.run_job, job_id)
    await bench.until(job_id, lambda job: len(job.differentials) == 1)
    await expire_lease(bench, job_id)
    job = await bench.run(runner, job_id)
    assert (job.status, job.attempts) == (JobStatus.COMPLETED, 2)
    assert [d.keyframe for d in job.differentials] == [0, 1, 2, 3, 4]
    assert not captioner.running and JobKind.VIDEO in runner.open_queues


async def test_jobs_on_their_last_chance_run_one_at_a_time(bench: Bench) -> None:
    """Otherwise a job that kills or stalls every worker would cause the last strike or stall of the others."""
    first, second, fresh = [await bench.recaption(text) for text in ("first", "second", "fresh")]
    await bench.store.redis.hset(job_key(first), "strikes", MAX_STRIKES - 1)
    await bench.store.redis.hset(job_key(second), "stalls", MAX_STALLS - 1)
    captioner = FakeCaptioner(delay_s=1)
    runner = bench.runner(captioner, slots=1)
    for job_id in (first, second, second, fresh):
        await asyncio.to_thread(runner.run_job, job_id)
    await bench.until(fresh, lambda job: job.status is JobStatus.RUNNING)
    await bench.until(first, lambda job: job.status is JobStatus.RUNNING)
    job = await bench.ended(first)
    later = await bench.ended(second)
    assert job.finished_at and later.started_at
    finished_texts = [e.at async for e in bench.store.events(first) if e.event.progress]
    assert finished_texts[0] <= later.started_at
    assert [(await bench.ended(job_id)).attempts for job_id in (first, second, fresh)] == [1, 1, 1]


async def test_videos_and_text_jobs_run_concurrently(bench: Bench, clip: Path) -> None:
    captioner = FakeCaptioner(delay_s=0.2)
    runner = bench.runner(captioner, slots=3)
    jobs = []
    while JobKind.VIDEO in runner.open_queues:
        jobs.append(await bench.video(clip, keyframes="interval"))
        await asyncio.to_thread(runner.run_job, jobs[-1])
    assert len(jobs) == 3
    text = await bench.run(runner, await bench.recaption("a cat"))
    assert text.status is JobStatus.COMPLETED
    for job_id in jobs:
        assert (await bench.ended(job_id)).status is JobStatus.COMPLETED
    assert captioner.most_running >= 3
    assert JobKind.VIDEO in runner.open_queues


class LossyStore(Store):
    """A store that loses every second reply to a write."""

    count = 0

    async def append(self, lease: Lease, seq: int, event: Event) -> None:
        await super().append(lease, seq, event)
        self.count += 1
        if self.count % 2:
            raise RedisConnectionError("connection lost")


class RetryingLossyStore(RetryingStore, LossyStore):
    """A worker's store on top of the lossy one."""


async def test_lost_replies_neither_lose_nor_duplicate_an_event(bench: Bench) -> None:
    job_id = await bench.recaption("a cat")
    store = RetryingLossyStore(bench.store.redis)
    lease = await store.claim(job_id)
    assert lease is not None
    publisher = Publisher(store, lease, 1)
    await asyncio.gather(*(publisher.append(Delta(of="caption", text=str(k))) for k in range(20)))
    assert [e.text for e in await bench.events(job_id) if isinstance(e, Delta)] == [str(k) for k in range(20)]


async def test_a_cancelled_write_does_not_break_the_sequence(bench: Bench) -> None:
    job_id = await bench.recaption("a cat")
    lease = await bench.store.claim(job_id)
    assert lease is not None
    publisher = Publisher(bench.store, lease, 1)
    for k in range(20):
        writer = asyncio.create_task(publisher.append(Delta(of="caption", text=str(k))))
        await asyncio.sleep(0.0003 * k)
        writer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writer
    await publisher.append(Caption(text="end"))
    assert isinstance((await bench.events(job_id))[-1], Caption)


@pytest.mark.parametrize("setting", ["min-replicas-to-write", "maxmemory"])
async def test_a_worker_waits_while_redis_refuses_writes(bench: Bench, clip: Path, setting: str) -> None:
    captioner = FakeCaptioner(delay_s=0.05)
    job_id = await bench.video(clip, keyframes="interval")
    await asyncio.to_thread(bench.runner(captioner).run_job, job_id)
    await bench.until(job_id, lambda job: len(job.differentials) == 1)
    await bench.store.redis.config_set(setting, 1)
    try:
        await asyncio.sleep(1)
        count = len(await bench.events(job_id))
        await asyncio.sleep(0.5)
        assert len(await bench.events(job_id)) == count
    finally:
        await bench.store.redis.config_set(setting, 0)
    job = await bench.ended(job_id)
    assert (job.status, job.attempts) == (JobStatus.COMPLETED, 1)


async def test_a_reaper_wakes_jobs_that_no_worker_holds(bench: Bench) -> None:
    queued, woken, held, lost, ended = [await bench.recaption(text) for text in ("a", "b", "c", "d", "e")]
    wakeups, redis = Wakeups(bench.redis_url), bench.store.redis
    for job_id in (queued, woken):
        await redis.zadd(QUEUED, {job_id: 1})
    await wakeups.wake(JobKind.RECAPTION, woken)
    for job_id in (held, lost, ended):
        assert await bench.store.claim(job_id) is not None
    await bench.store.cancel(ended)
    for job_id in (lost, ended):
        await redis.hset(job_key(job_id), "until", 1)
        await redis.zadd(LEASES, {job_id: 1})
    reapers = [Reaper(bench.store, wakeups, LocalStorage(bench.data_dir)) for _ in range(4)]
    await asyncio.gather(*(reaper.reap() for reaper in reapers))
    await asyncio.gather(*(reaper.reap() for reaper in reapers))
    assert await redis.lrange("rq:queue:recaption", 0, -1) == [f"{lost}-1", f"{woken}-0", f"{queued}-0"]
    wakeups.close()
