"""What goes and when: ended jobs after their time, uploads that are not needed, files that belong to no job."""

import asyncio
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.access.rate_limits import Limits
from service.contract.jobs import JobKind, RecaptionOptions, Record, new_job_id
from service.contract.storage.local import keyframe_path, upload_path
from service.contract.store.store import JOBS, Store, events_key, job_key
from service.intake.idempotency import Idempotency
from service.upkeep import retention
from service.upkeep.retention import Retention
from tests.service.scripted import ScriptedWorker, Serve, Served, eventually, recaption_events, video_events

LONG_AGO = time.time() - retention.FORSAKEN_AFTER_S - 60
NO_JOB = "cap_" + "0" * 32


def old(path: Path) -> Path:
    """Make the file, or its directory, look as if nothing had been written for long."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"old")
    os.utime(path, (LONG_AGO, LONG_AGO))
    os.utime(path.parent, (LONG_AGO, LONG_AGO))
    return path


@pytest.fixture
def as_if_never_renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test can set back when a file was written, but not when its name was."""
    monkeypatch.setattr(retention, "_named_at", lambda told: told.st_mtime)


async def test_an_ended_job_goes_in_time_with_all_it_has(
    serve: Serve, store: Store, worker: ScriptedWorker, clip: Path
) -> None:
    async with serve(retention_s=2.0) as one, serve(retention_s=2.0) as two:
        headers = {"Idempotency-Key": "k"}
        made = await one.client.post("/captions", files={"file": clip.read_bytes()}, headers=headers)
        ended, path = made.json()["id"], made.headers["location"]
        other = await two.client.post("/recaption", json={"prompt": "A fox"}, headers={"Prefer": "wait=0"})
        keyframe = keyframe_path(one.settings.data_dir, ended, 0)
        keyframe.parent.mkdir(parents=True)
        keyframe.write_bytes(b"jpeg")
        await worker.append(await worker.claim(ended), *video_events(ended))
        assert (await one.client.get(path)).status_code == 200

        async def gone() -> bool:
            return (await two.client.get(path)).status_code == 404

        began = time.monotonic()
        await eventually(gone, 10)
        assert time.monotonic() - began > 1.0
        await eventually(lambda: _is(one.files == []))
        assert not keyframe.parent.exists()
        assert (await two.client.get(other.headers["location"])).status_code == 200, "one that has not ended stays"
        left = await store.redis.keys(f"*{ended}*")
        assert [name for name in left if not name.startswith("rq:")] == []
        (entry,) = await store.redis.keys("sharecap:idempotency:*")
        assert await store.redis.ttl(entry) > 23 * 3600


async def _is(true: bool) -> bool:
    return true


async def test_many_jobs_go_and_the_others_stay(
    store: Store, worker: ScriptedWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "AT_ONCE", 10)
    ids = [new_job_id() for _ in range(35)]
    for job_id in ids:
        options, now = RecaptionOptions(prompt="A fox"), datetime.now(UTC)
        await store.create(Record(id=job_id, kind=JobKind.RECAPTION, options=options, created_at=now))
    ended = [job_id for number, job_id in enumerate(ids) if number % 3]
    for job_id in ended:
        await worker.append(await worker.claim(job_id), *recaption_events(job_id))
    broken = ended.pop()
    await store.redis.xtrim(events_key(broken), maxlen=0)
    await keeper_of(store, tmp_path, 60).expire()
    assert await store.redis.zcard(JOBS) == len(ids), "none is old enough"
    await asyncio.sleep(0.3)
    await asyncio.gather(*(keeper_of(store, tmp_path, 0.2).expire() for _ in range(2)))
    assert set(await store.redis.zrange(JOBS, 0, -1)) == set(ids) - set(ended)
    assert await store.redis.exists(*(job_key(job_id) for job_id in ended)) == 0


def keeper_of(store: Store, data_dir: Path, retention_s: float) -> Retention:
    return Retention(store, Idempotency(store.redis), Limits(store.redis), data_dir, retention_s)


async def test_nothing_goes_where_retention_is_off(serve: Serve, store: Store, worker: ScriptedWorker) -> None:
    async with serve(retention_s=0) as gateway:
        answer = await gateway.client.post("/recaption", json={"prompt": "A fox"}, headers={"Prefer": "wait=0"})
        job_id = answer.json()["id"]
        await worker.append(await worker.claim(job_id), *recaption_events(job_id))
        keeper = gateway.app.state.gateway.retention
        assert keeper._retention_s == 0
        await keeper.sweep()
        assert (await gateway.client.get(f"/captions/{job_id}")).status_code == 200


async def test_a_cancelled_jobs_upload_goes_at_once(gateway: Served, worker: ScriptedWorker, clip: Path) -> None:
    queued, running = [(await gateway.post_video(clip)).json()["id"] for _ in range(2)]
    lease = await worker.claim(running)
    await worker.append(lease, *video_events(running)[:1])
    for job_id in (queued, running):
        await gateway.client.post(f"/captions/{job_id}/cancel")
    assert gateway.files == [running], "a worker is still at it; that one removes it"


@pytest.mark.usefixtures("as_if_never_renamed")
async def test_files_of_no_job_go_and_uploads_of_ended_ones(
    gateway: Served, store: Store, worker: ScriptedWorker, clip: Path
) -> None:
    queued, ended = [(await gateway.post_video(clip)).json()["id"] for _ in range(2)]
    await worker.append(await worker.claim(ended), *video_events(ended))
    data_dir = gateway.settings.data_dir
    kept = [
        upload_path(data_dir, queued),
        old(keyframe_path(data_dir, ended, 0)),
        old(keyframe_path(data_dir, queued, 0)),
        old(upload_path(data_dir, f"{queued}.part")),
        upload_path(data_dir, "young.part"),
        upload_path(data_dir, NO_JOB.replace("0", "1")),
    ]
    for path in kept[-2:]:
        path.write_bytes(b"young")
    os.utime(kept[0], (LONG_AGO, LONG_AGO))
    for path in (
        upload_path(data_dir, NO_JOB),
        upload_path(data_dir, f"{NO_JOB}.part"),
        upload_path(data_dir, "ab12.part"),
        keyframe_path(data_dir, NO_JOB, 0),
    ):
        old(path)
    assert upload_path(data_dir, ended).exists()
    await asyncio.gather(*(keeper_of(store, data_dir, 0).sweep() for _ in range(2)))
    left = [path for path in data_dir.rglob("*") if path.is_file()]
    assert sorted(left) == sorted(kept)


async def test_an_upload_under_way_is_left_alone(gateway: Served, store: Store) -> None:
    host = gateway.url.removeprefix("http://")
    _, writer = await asyncio.open_connection(*host.split(":"))
    head = f"POST /captions HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9000000\r\n"
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    writer.write(f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n".encode() + part + bytes(3_000_000))
    await writer.drain()
    await eventually(lambda: _is(any(name.endswith(".part") for name in gateway.files)))
    await keeper_of(store, gateway.settings.data_dir, 1).sweep()
    assert len(gateway.files) == 1
    writer.close()
    await writer.wait_closed()
    await eventually(lambda: _is(gateway.files == []))


async def test_one_gateway_at_a_time_looks(gateway: Served, store: Store) -> None:
    turns = [await keeper_of(store, gateway.settings.data_dir, 1)._my_turn("orphans", 30) for _ in range(3)]
    assert turns == [True, False, False]
