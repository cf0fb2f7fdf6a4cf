"""Posting videos: what is accepted and stored, what is refused, and that nothing is left behind."""

import asyncio
import hashlib
import json
import os
import subprocess
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from service.contract.jobs import JobKind, Record
from service.contract.store.keys import JOBS
from service.contract.store.store import Store
from service.contract.store.wakeups import TASK
from service.intake.uploads import plain_name
from tests.service.scripted import ScriptedWorker, Serve, Served, eventually, video_events


def problem(answer: httpx.Response, status: int, code: str) -> str:
    """Check that the answer is this problem; return its detail."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    told = answer.json()
    assert set(told) == {"type", "title", "status", "detail", "code", "retryable"}
    assert (told["status"], told["code"]) == (status, code), told
    assert "Traceback" not in answer.text
    return str(told["detail"])


async def nothing_kept(gateway: Served, store: Store) -> None:
    assert gateway.files == []
    assert await store.redis.keys("*") == []


async def test_a_video_is_stored_recorded_and_queued(gateway: Served, store: Store, clip: Path) -> None:
    answer = await gateway.post_video(clip, interval_s="0.5", seed="7", metadata='{"camera": "door"}')
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/captions/{job['id']}" == job["links"]["self"]
    assert (job["status"], job["kind"], job["metadata"]) == ("queued", "video", {"camera": "door"})
    assert (job["options"]["interval_s"], job["options"]["seed"], job["options"]["mode"]) == (0.5, 7, "sliding")
    assert job["options"]["max_keyframes"] == gateway.settings.max_keyframes
    data = clip.read_bytes()
    assert job["source"] == {
        "filename": "clip.mp4",
        "url": None,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "duration_s": pytest.approx(3.0),
        "width": 160,
        "height": 120,
        "fps": pytest.approx(10.0),
    }
    assert (gateway.settings.data_dir / "uploads" / job["id"]).read_bytes() == data
    assert gateway.files == [job["id"]]
    assert (await store.record(job["id"])).source.filename == "clip.mp4"


async def test_the_wake_up_carries_only_the_id(gateway: Served, store: Store, clip: Path) -> None:
    job_id = (await gateway.post_video(clip)).json()["id"]
    (rq_id,) = await store.redis.lrange("rq:queue:video", 0, -1)
    assert rq_id.startswith(f"{job_id}-")
    with Redis.from_url(gateway.settings.redis_url) as raw:
        fields = raw.hgetall(f"rq:job:{rq_id}")
    assert json.loads(zlib.decompress(fields[b"data"])) == [TASK, None, [job_id], {}]
    assert (fields[b"timeout"], fields[b"result_ttl"]) == (b"-1", b"0")


async def test_two_posts_are_two_jobs(gateway: Served, clip: Path) -> None:
    answers = await asyncio.gather(*(gateway.post_video(clip) for _ in range(6)))
    assert len({answer.json()["id"] for answer in answers}) == 6
    assert len(gateway.files) == 6


UNFIT = [
    ({"intervall_s": "1"}, "intervall_s: unknown option; did you mean interval_s?"),
    ({"webhook": "x"}, "webhook: unknown option"),
    ({"url": "http://example.com/a.mp4"}, "url: unknown option"),
    ({"interval_s": "0.01"}, "interval_s: Input should be greater than or equal to 0.1"),
    ({"interval_s": "inf"}, "interval_s"),
    ({"interval_s": "soon"}, "interval_s"),
    ({"interval_s": ""}, "interval_s"),
    ({"mode": "slow"}, "mode: Input should be 'sliding' or 'fast'"),
    ({"hd_num": "56"}, "hd_num"),
    ({"hd_num": "2.5"}, "hd_num"),
    ({"seed": "-1"}, "seed"),
    ({"start_s": "2", "end_s": "1"}, "end_s must be greater than start_s"),
    ({"start_s": "3.5"}, "start_s: the video lasts 3.000 s"),
    ({"max_keyframes": "2001"}, "max_keyframes: at most 2000"),
    ({"metadata": "[1]"}, "metadata"),
    ({"metadata": '{"a": 1}'}, "metadata.a"),
    ({"metadata": '{"a": "b"'}, "metadata: not valid JSON"),
    ({"metadata": '{"a": "1", "a": "2"}'}, "a: given more than once"),
    ({"metadata": json.dumps({str(n): "" for n in range(17)})}, "metadata"),
    ({"metadata": json.dumps({"a": "b" * 513})}, "metadata.a"),
]


async def test_an_unfit_option_is_named(gateway: Served, store: Store, clip: Path) -> None:
    for options, told in UNFIT:
        detail = problem(await gateway.post_video(clip, **options), 422, "invalid_option")
        assert detail.startswith(told), (options, detail)
    await nothing_kept(gateway, store)


async def test_a_repeated_option_is_named(gateway: Served, store: Store, clip: Path) -> None:
    answer = await gateway.client.post("/captions", data={"seed": ["1", "2"]}, files={"file": clip.read_bytes()})
    assert problem(answer, 422, "invalid_option") == "seed: given more than once"
    twice = [("file", ("a.mp4", clip.read_bytes())), ("file", ("b.mp4", clip.read_bytes()))]
    assert problem(await gateway.client.post("/captions", files=twice), 422, "invalid_option").startswith("file")
    await nothing_kept(gateway, store)


async def test_a_form_without_a_file(gateway: Served, store: Store) -> None:
    answer = await gateway.client.post("/captions", files={"video": b"abc"})
    assert problem(answer, 422, "invalid_option").startswith("file: ")
    await nothing_kept(gateway, store)


async def test_a_file_that_is_no_video(gateway: Served, store: Store, clip: Path, make_clip, tmp_path) -> None:
    path = tmp_path / "file.mp4"
    for body in (b"", b"hello " * 99, clip.read_bytes()[:-500]):
        path.write_bytes(body)
        problem(await gateway.post_video(path), 422, "not_a_video")
    problem(await gateway.post_video(make_clip(path, 1.0, video=False)), 422, "not_a_video")
    await nothing_kept(gateway, store)


async def test_other_codecs_pixels_and_lengths(serve: Serve, store: Store, clip: Path, make_clip, tmp_path) -> None:
    async with serve(max_pixels=160 * 100, max_duration_s=2.0) as gateway:
        foreign = make_clip(tmp_path / "a.mkv", 0.5, codec="mjpeg", pix_fmt="yuvj420p")
        problem(await gateway.post_video(foreign), 415, "unsupported_media")
        problem(await gateway.post_video(clip), 413, "video_too_large")
        long = make_clip(tmp_path / "long.mp4", 2.5, size=(64, 48))
        problem(await gateway.post_video(long), 422, "video_too_long")
        await nothing_kept(gateway, store)


async def test_too_many_bytes_told_or_untold(serve: Serve, store: Store) -> None:
    async with serve(max_upload_bytes=3_000_000) as gateway:
        problem(await gateway.client.post("/captions", files={"file": bytes(5_000_000)}), 413, "video_too_large")
        problem(await gateway.client.post("/captions", files={"file": bytes(3_000_001)}), 413, "video_too_large")

        async def untold():
            yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            for _ in range(400):
                yield bytes(65_536)

        headers = {"content-type": "multipart/form-data; boundary=b"}
        problem(await gateway.client.post("/captions", content=untold(), headers=headers), 413, "video_too_large")
        await nothing_kept(gateway, store)


async def test_a_large_upload_takes_little_memory(serve: Serve, clip: Path) -> None:
    async def body():
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + clip.read_bytes()
        for _ in range(1000):
            yield bytes(65_536)
        yield b"\r\n--b--\r\n"

    async with serve() as gateway:
        tracemalloc.start()
        headers = {"content-type": "multipart/form-data; boundary=b"}
        answer = await gateway.client.post("/captions", content=body(), headers=headers)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert answer.status_code == 202
        assert answer.json()["source"]["bytes"] == clip.stat().st_size + 1000 * 65_536
        assert peak < 16_000_000


async def test_a_full_disk(serve: Serve, store: Store, clip: Path) -> None:
    async with serve(min_free_bytes=1 << 62) as gateway:
        answer = await gateway.post_video(clip)
        problem(answer, 507, "storage_full")
        assert answer.json()["retryable"] is True
        await nothing_kept(gateway, store)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for two megabytes and twelve files, mounted here; root only."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts")
    path = tmp_path / "small"
    path.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=12", "tmpfs", str(path)]
    if subprocess.run(mounting, capture_output=True, check=False).returncode != 0:
        pytest.skip("nothing can be mounted here")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


async def test_a_disk_that_is_really_full(
    serve: Serve, store: Store, clip: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def body(size: int) -> dict[str, bytes]:
        return {"file": clip.read_bytes() + bytes(size)}

    async def untold(size: int) -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(size // 65_536):
            yield bytes(65_536)

    form = {"content-type": "multipart/form-data; boundary=b"}
    async with serve(data_dir=small_disk / "data") as gateway:
        post = gateway.client.post
        problem(await post("/captions", files=body(3_000_000)), 507, "storage_full")  # by its length
        problem(
            await post("/captions", content=untold(3_000_000), headers=form), 507, "storage_full"
        )  # by what is free
        with monkeypatch.context() as unchecked:
            unchecked.setattr("service.contract.storage.local.LocalStorage.check_free_space", lambda *_: None)
            problem(await post("/captions", files=body(3_000_000)), 507, "storage_full")  # by the write itself
            problem(await post("/captions", content=untold(9_000_000), headers=form), 507, "storage_full")
        await nothing_kept(gateway, store)
        for number in range(12):
            with suppress(OSError):
                (small_disk / str(number)).touch()
        problem(await post("/captions", files=body(0)), 507, "storage_full")  # no room for one more name
        await nothing_kept(gateway, store)
        (small_disk / "0").unlink()
        assert (await post("/captions", files=body(0))).status_code == 202
        assert len(gateway.files) == 1


BROKEN_BODIES = {
    "ends early": b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc',
    "no parts": b"hello",
    "nothing": b"",
    "endless field": b'--b\r\nContent-Disposition: form-data; name="seed"\r\n\r\n' + b"1" * 70_000 + b"\r\n--b--\r\n",
    "many fields": b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n' * 100 + b"--b--\r\n",
    "not UTF-8": b'--b\r\nContent-Disposition: form-data; name="seed"\r\n\r\n\xff\xfe\r\n--b--\r\n',
    "no name": b"--b\r\nX-A: b\r\n\r\nabc\r\n--b--\r\n",
    "long header": b"--b\r\nX-A: " + b"a" * 100_000 + b"\r\n\r\nabc\r\n--b--\r\n",
}


async def test_a_broken_form(gateway: Served, store: Store) -> None:
    headers = {"content-type": "multipart/form-data; boundary=b"}
    for name, body in BROKEN_BODIES.items():
        answer = await gateway.client.post("/captions", content=body, headers=headers)
        assert problem(answer, 422, "invalid_option"), name
    await nothing_kept(gateway, store)


async def test_a_form_without_boundary_and_other_types(gateway: Served, store: Store) -> None:
    post = gateway.client.post
    answer = await post("/captions", content=b"x", headers={"content-type": "multipart/form-data"})
    problem(answer, 422, "invalid_option")
    problem(await post("/captions", content=b"x", headers={"content-type": "video/mp4"}), 415, "unsupported_media")
    problem(await post("/captions", data={"url": "x"}), 415, "unsupported_media")
    problem(await post("/captions"), 415, "unsupported_media")
    await nothing_kept(gateway, store)


async def test_an_address_is_refused(gateway: Served, store: Store) -> None:
    post = gateway.client.post
    problem(await post("/captions", json={"url": "http://127.0.0.1/a.mp4"}), 422, "url_forbidden")
    problem(await post("/captions", json={"url": "http://127.0.0.1/a.mp4", "sed": 1}), 422, "invalid_option")
    problem(await post("/captions", json={"url": "http://127.0.0.1/a.mp4", "seed": "1"}), 422, "invalid_option")
    problem(await post("/captions", json={}), 422, "invalid_option")
    problem(await post("/captions", json=[1]), 422, "invalid_option")
    await nothing_kept(gateway, store)


async def test_a_client_that_breaks_off_leaves_nothing(gateway: Served, store: Store) -> None:
    host = gateway.url.removeprefix("http://")
    _, writer = await asyncio.open_connection(*host.split(":"))
    head = f"POST /captions HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9000000\r\n"
    head += "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    writer.write(head.encode() + part + bytes(4_000_000))
    await writer.drain()

    async def begun() -> bool:
        return any(name.endswith(".part") for name in gateway.files)

    await eventually(begun)
    writer.close()
    await writer.wait_closed()

    async def cleared() -> bool:
        return gateway.files == []

    await eventually(cleared)
    await nothing_kept(gateway, store)


async def test_an_upload_that_cannot_be_recorded_is_removed(
    gateway: Served, store: Store, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = gateway.app.state.gateway

    async def fail(record: Record, reservation: str) -> bool:
        assert gateway.files == [record.id], "the video is there before its record"
        await store.create(record, reservation)
        raise RedisConnectionError("the reply is lost")

    with monkeypatch.context() as broken:
        broken.setattr(here.store, "create", fail)
        problem(await gateway.post_video(clip), 503, "queue_unavailable")
        await nothing_kept(gateway, store)

        async def fail_too(job_id: str) -> None:
            raise RedisConnectionError("still gone")

        broken.setattr(here.store, "delete", fail_too)
        problem(await gateway.post_video(clip), 503, "queue_unavailable")
    assert gateway.files == await store.redis.zrange("sharecap:jobs", 0, -1), "the job that may be there has its video"


async def test_a_lost_wake_up_loses_no_job(gateway: Served, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(kind: JobKind, job_id: str) -> None:
        raise RedisConnectionError("gone")

    monkeypatch.setattr(gateway.app.state.gateway.wakeups, "wake", fail)
    answer = await gateway.post_video(clip)
    assert (answer.status_code, gateway.files) == (202, [answer.json()["id"]])


async def test_without_redis_an_upload_is_refused(serve: Serve, clip: Path) -> None:
    async with serve(redis_url="redis://127.0.0.1:1/0", redis_patience_s=0.1) as gateway:
        answer = await gateway.post_video(clip)
        problem(answer, 503, "queue_unavailable")
        assert answer.json()["retryable"] is True
        assert gateway.files == []
        problem(await gateway.client.get("/captions"), 503, "queue_unavailable")


@pytest.mark.parametrize("setting", ["min-replicas-to-write", "maxmemory"])
async def test_a_redis_that_takes_no_writes(gateway: Served, store: Store, clip: Path, setting: str) -> None:
    there = (await gateway.post_video(clip)).json()
    await store.cancel(there["id"])
    await store.redis.config_set(setting, 1)
    try:
        posted = await gateway.post_video(clip)
        deleted = await gateway.client.delete(there["links"]["self"])
        recaption = await gateway.client.post("/recaption", json={"prompt": "A fox"}, headers={"Prefer": "wait=0"})
    finally:
        await store.redis.config_set(setting, 0)
    for answer in (posted, recaption):
        problem(answer, 503, "queue_unavailable")
    if setting == "maxmemory":
        assert deleted.status_code == 204, "that needs none"
    else:
        problem(deleted, 503, "queue_unavailable")
        assert (await gateway.client.delete(there["links"]["self"])).status_code == 204
    assert gateway.files == [] and await store.redis.zcard(JOBS) == 0


async def test_waiting_for_a_video(gateway: Served, store: Store, worker: ScriptedWorker, clip: Path) -> None:
    wait = {"Prefer": "respond-async, wait=20"}
    files = {"file": clip.read_bytes()}
    problem(await gateway.client.post("/captions", files=files, headers=wait), 503, "no_worker")
    await nothing_kept(gateway, store)
    await worker.show_card()
    working = worker.serve(video_events)
    answer = await gateway.client.post("/captions", files=files, headers=wait)
    working.cancel()
    assert (answer.status_code, answer.headers["preference-applied"]) == (200, "wait=20")
    job = answer.json()
    assert (job["status"], job["caption"]) == ("completed", "A light square moves to the right.")
    assert job["differentials"][0]["text"] == "A light square."


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("a.mp4", "a.mp4"),
        ("../../etc/passwd", "passwd"),
        ("C:\\videos\\a.mp4", "a.mp4"),
        ("a\x00b\r\n.mp4", "ab.mp4"),
        ("", None),
        ("/", None),
        ("日本語 🟨.mp4", "日本語 🟨.mp4"),
        ("x" * 300, "x" * 255),
    ],
)
def test_a_file_name_is_only_a_word(told: str, name: str | None) -> None:
    assert plain_name(told) == name


async def test_names_given_twice_are_found_at_once(gateway: Served) -> None:
    many = ",".join(f'"n{number}":1' for number in range(60_000))
    async with asyncio.timeout(5):
        answer = await gateway.client.post(
            "/captions", content="{" + many + ',"n59999":2}', headers={"Content-Type": "application/json"}
        )
    assert (answer.status_code, answer.json()["detail"]) == (422, "n59999: given more than once")
    odd = await gateway.client.post(
        "/captions", content=r'{"\ud800":1,"\ud800":2}', headers={"Content-Type": "application/json"}
    )
    assert (odd.status_code, odd.json()["code"]) == (422, "invalid_option")


@pytest.mark.parametrize("name", ["9" * 5000 + ".jpg", "9" * 260 + ".jpg", "0.png", "..jpg", "-1.jpg"])
async def test_what_is_no_keyframes_name_is_not_there(gateway: Served, clip: Path, name: str) -> None:
    job_id = (await gateway.post_video(clip)).json()["id"]
    assert (await gateway.client.get(f"/captions/{job_id}/keyframes/{name}")).status_code == 404
