"""Retention: expired jobs, unneeded uploads and orphaned files are deleted; everything else stays."""

import asyncio
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.access.rate_limits import RateLimits
from service.contract.jobs import JobKind, RecaptionOptions, Record, new_job_id
from service.contract.storage import local
from service.contract.storage.interface import StoredFile
from service.contract.storage.local import LocalStorage, keyframe_path, upload_path
from service.contract.store.keys import JOBS, TEXTS, events_key, job_key
from service.contract.store.store import Store
from service.intake.idempotency import Idempotency
from service.upkeep import retention
from service.upkeep.retention import Retention
from tests.service.scripted import ScriptedWorker, Serve, Served, eventually, recaption_events, video_events

LONG_AGO = time.time() - retention.ABANDONED_AFTER_S - 60
NO_JOB = "cap_" + "0" * 32


def old(path: Path) -> Path:
    """Create the file and set the modification times of the file and its directory far back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"old")
    os.utime(path, (LONG_AGO, LONG_AGO))
    os.utime(path.parent, (LONG_AGO, LONG_AGO))
    return path


def new(path: Path) -> Path:
    path.write_bytes(b"new")
    return path


@pytest.fixture
def as_if_never_renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignore the time of a file's renaming, which a test cannot set back."""
    monkeypatch.setattr(local, "_changed_at", lambda status: status.st_mtime)


async def test_expired_job_is_deleted_with_all_its_data(
    serve: Serve, store: Store, worker: ScriptedWorker, clip: Path
) -> None:
    async with serve(retention_s=2.0) as one, serve(retention_s=2.0) as two:
        headers = {"Idempotency-Key": "k"}
        accepted = await one.client.post("/captions", files={"file": clip.read_bytes()}, headers=headers)
        ended, path = accepted.json()["id"], accepted.headers["location"]
        other = await two.client.post("/recaption", json={"prompt": "A fox"}, headers={"Prefer": "wait=0"})
        keyframe = keyframe_path(one.settings.data_dir, ended, 0)
        keyframe.parent.mkdir(parents=True)
        keyframe.write_bytes(b"jpeg")
        await worker.append(await worker.claim(ended), *video_events(ended))
        assert (await one.client.get(path)).status_code == 200

        async def deleted() -> bool:
            return (await two.client.get(path)).status_code == 404

        start = time.monotonic()
        await eventually(deleted, 10)
        assert time.monotonic() - start > 1.0
        await eventually(lambda: awaitable(one.files == []))
        assert not keyframe.parent.exists()
        assert (await two.client.get(other.headers["location"])).status_code == 200, "an unfinished job stays"
        remaining = await store.redis.keys(f"*{ended}*")
        assert [name for name in remaining if not name.startswith("rq:")] == []
        (entry,) = await store.redis.keys("sharecap:idempotency:*")
        assert await store.redis.ttl(entry) > 23 * 3600


async def awaitable(value: bool) -> bool:
    return value


async def test_only_expired_jobs_are_deleted(
    store: Store, worker: ScriptedWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "JOBS_PER_READ", 10)
    ids = [new_job_id() for _ in range(35)]
    for job_id in ids:
        options, now = RecaptionOptions(prompt="A fox"), datetime.now(UTC)
        await store.create(Record(id=job_id, kind=JobKind.RECAPTION, options=options, created_at=now))
    ended = [job_id for number, job_id in enumerate(ids) if number % 3]
    for job_id in ended:
        await worker.append(await worker.claim(job_id), *recaption_events(job_id))
    await store.redis.xtrim(events_key(ended[0]), maxlen=0)
    await store.redis.xtrim(events_key(ids[0]), maxlen=0)
    await retention_of(store, tmp_path, 60).expire()
    assert await store.redis.zcard(JOBS) == len(ids), "no job has expired yet"
    await asyncio.sleep(0.3)
    await asyncio.gather(*(retention_of(store, tmp_path, 0.2).expire() for _ in range(2)))
    assert set(await store.redis.zrange(JOBS, 0, -1)) == set(ids) - set(ended)
    assert await store.redis.exists(*(job_key(job_id) for job_id in ended)) == 0


async def test_unreadable_jobs_do_not_stop_the_deletion_of_others(
    gateway: Served, store: Store, worker: ScriptedWorker, clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The unreadable jobs are older than the readable one, so they come first."""
    jobs = [(await gateway.post_video(clip)).json()["id"] for _ in range(6)]
    queued, no_job, no_kind, no_time, odd_status, readable = jobs
    for job_id in (no_kind, no_time, odd_status, readable):
        await worker.append(await worker.claim(job_id), *video_events(job_id))
    await store.redis.xadd(events_key(queued), {"type": "started", "data": "{}"})
    await store.redis.delete(job_key(no_job))
    await store.redis.hset(job_key(no_kind), "record", '{"options": {}}')
    await store.redis.xadd(events_key(no_time), {"type": "completed", "data": "{}"})
    await store.redis.hset(job_key(odd_status), "status", "odd")
    retention = retention_of(store, gateway.settings.data_dir, 0.01)
    await asyncio.sleep(0.1)
    await retention.sweep()
    assert gateway.files == sorted([queued, no_job, odd_status]), "whether an upload is needed may be unknown"
    await retention.expire()
    assert await store.redis.zrange(JOBS, 0, -1) == [queued], "an unfinished job stays"
    assert (
        all(job_id in caplog.text for job_id in (queued, no_kind, no_time, odd_status)) and readable not in caplog.text
    )


async def test_files_that_cannot_be_deleted_do_not_stop_the_deletion_of_others(
    gateway: Served,
    worker: ScriptedWorker,
    clip: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = worker.store
    stuck, other = [(await gateway.post_video(clip)).json()["id"] for _ in range(2)]
    for job_id in (stuck, other):
        await worker.append(await worker.claim(job_id), *video_events(job_id))
    delete_file, delete_job_files = LocalStorage.delete_file, LocalStorage.delete_job_files

    async def fail_for_stuck_file(storage: LocalStorage, file: StoredFile) -> None:
        if file.job_id == stuck:
            raise PermissionError(13, "Permission denied")
        await delete_file(storage, file)

    async def fail_for_stuck_job(storage: LocalStorage, job_id: str) -> None:
        if job_id == stuck:
            raise PermissionError(13, "Permission denied")
        await delete_job_files(storage, job_id)

    monkeypatch.setattr(LocalStorage, "delete_file", fail_for_stuck_file)
    monkeypatch.setattr(LocalStorage, "delete_job_files", fail_for_stuck_job)
    retention = retention_of(store, gateway.settings.data_dir, 0.01)
    await retention.sweep()
    assert gateway.files == [stuck]
    await asyncio.sleep(0.1)
    await retention.expire()
    assert await store.redis.zcard(JOBS) == 0
    assert caplog.text.count(f"{stuck}: cannot delete its files") == 2


def retention_of(store: Store, data_dir: Path, retention_s: float) -> Retention:
    return Retention(store, Idempotency(store.redis), RateLimits(store.redis), LocalStorage(data_dir), retention_s)


async def test_retention_of_zero_deletes_no_jobs(serve: Serve, store: Store, worker: ScriptedWorker) -> None:
    async with serve(retention_s=0, text_retention_s=0) as gateway:
        answer = await gateway.client.post("/recaption", json={"prompt": "A fox"}, headers={"Prefer": "wait=0"})
        job_id = answer.json()["id"]
        await worker.append(await worker.claim(job_id), *recaption_events(job_id))
        unlimited = gateway.app.state.gateway.retention
        assert unlimited.periods == {}
        await unlimited.sweep()
        assert (await gateway.client.get(f"/captions/{job_id}")).status_code == 200


async def test_upload_of_cancelled_job_is_deleted_at_once(gateway: Served, worker: ScriptedWorker, clip: Path) -> None:
    queued, running = [(await gateway.post_video(clip)).json()["id"] for _ in range(2)]
    lease = await worker.claim(running)
    await worker.append(lease, *video_events(running)[:1])
    for job_id in (queued, running):
        await gateway.client.post(f"/captions/{job_id}/cancel")
    assert gateway.files == [running], "the worker that holds the lease deletes this upload"


@pytest.mark.usefixtures("as_if_never_renamed")
async def test_sweep_deletes_orphaned_files_and_uploads_of_ended_jobs(
    gateway: Served, store: Store, worker: ScriptedWorker, clip: Path
) -> None:
    queued, ended = [(await gateway.post_video(clip)).json()["id"] for _ in range(2)]
    await worker.append(await worker.claim(ended), *video_events(ended))
    data_dir = gateway.settings.data_dir
    needed = [
        upload_path(data_dir, queued),
        old(keyframe_path(data_dir, ended, 0)),
        old(keyframe_path(data_dir, queued, 0)),
        old(upload_path(data_dir, f"{queued}.part")),
        new(upload_path(data_dir, "new.part")),
        new(upload_path(data_dir, NO_JOB.replace("0", "1"))),
    ]
    os.utime(upload_path(data_dir, queued), (LONG_AGO, LONG_AGO))
    for path in (
        upload_path(data_dir, NO_JOB),
        upload_path(data_dir, f"{NO_JOB}.part"),
        upload_path(data_dir, "ab12.part"),
        keyframe_path(data_dir, NO_JOB, 0),
    ):
        old(path)
    assert upload_path(data_dir, ended).exists()
    await asyncio.gather(*(retention_of(store, data_dir, 0).sweep() for _ in range(2)))
    remaining = [path for path in data_dir.rglob("*") if path.is_file()]
    assert sorted(remaining) == sorted(needed)


async def test_upload_in_progress_is_not_swept(gateway: Served, store: Store) -> None:
    host = gateway.url.removeprefix("http://")
    _, writer = await asyncio.open_connection(*host.split(":"))
    head = f"POST /captions HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9000000\r\n"
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    writer.write(f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n".encode() + part + bytes(3_000_000))
    await writer.drain()
    await eventually(lambda: awaitable(any(name.endswith(".part") for name in gateway.files)))
    await retention_of(store, gateway.settings.data_dir, 1).sweep()
    assert len(gateway.files) == 1
    writer.close()
    await writer.wait_closed()
    await eventually(lambda: awaitable(gateway.files == []))


async def test_task_runs_once_per_period(gateway: Served, store: Store) -> None:
    turns = [await retention_of(store, gateway.settings.data_dir, 1)._claim_turn("orphans", 30) for _ in range(3)]
    assert turns == [True, False, False]


async def test_text_jobs_expire_sooner_than_videos(
    serve: Serve, store: Store, worker: ScriptedWorker, clip: Path
) -> None:
    async with serve(text_retention_s=0.5) as gateway:
        retention = gateway.app.state.gateway.retention
        video = (await gateway.post_video(clip)).json()["id"]
        texts = []
        for _ in range(2):
            body, headers = {"prompt": "A fox"}, {"Prefer": "wait=0"}
            texts.append((await gateway.client.post("/recaption", json=body, headers=headers)).json()["id"])
        await worker.append(await worker.claim(video), *video_events(video))
        await worker.append(await worker.claim(texts[0]), *recaption_events(texts[0]))
        await retention.expire()
        assert await store.redis.zcard(JOBS) == 3, "nothing has expired yet"
        await asyncio.sleep(0.6)
        await retention.expire()
        assert sorted(await store.redis.zrange(JOBS, 0, -1)) == sorted([video, texts[1]]), "an unfinished job stays"


@pytest.mark.parametrize(
    ("retention_s", "text_retention_s", "text_period_s"), [(100, 10, 10), (10, 100, 10), (0, 10, 10), (10, 0, 10)]
)
def test_text_jobs_are_kept_for_the_shorter_period(
    store: Store, tmp_path: Path, retention_s: float, text_retention_s: float, text_period_s: float
) -> None:
    limits, idempotency = RateLimits(store.redis), Idempotency(store.redis)
    storage = LocalStorage(tmp_path)
    retention = Retention(store, idempotency, limits, storage, retention_s, text_retention_s=text_retention_s)
    assert retention.periods.get(TEXTS) == text_period_s and retention.periods.get(JOBS, 0) == retention_s
