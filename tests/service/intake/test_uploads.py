"""Posting videos: what is accepted and stored, what is refused, and that refused uploads leave nothing behind."""

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

from service.access.api_keys import ApiKeyStore, KeyLimits
from service.contract.jobs import JobKind, Record
from service.contract.sandbox.probe import VideoInfo, VideoLimits, probe
from service.contract.sandbox.subprocesses import ChildStarter
from service.contract.store.keys import JOBS
from service.contract.store.store import Store
from service.contract.store.wakeups import TASK
from service.dependencies import CONCURRENT_PROBES, PROBES_PER_KEY
from service.intake.uploads import plain_name
from service.routes import captions
from tests.service.scripted import ScriptedWorker, Serve, Served, eventually, video_events


def problem(answer: httpx.Response, status: int, code: str) -> str:
    """Check that the response is this problem and return its detail."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    body = answer.json()
    assert set(body) == {"type", "title", "status", "detail", "code", "retryable"}
    assert (body["status"], body["code"]) == (status, code), body
    assert "Traceback" not in answer.text
    return str(body["detail"])


async def nothing_stored(gateway: Served, store: Store) -> None:
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


async def test_the_wake_up_contains_only_the_job_id(gateway: Served, store: Store, clip: Path) -> None:
    job_id = (await gateway.post_video(clip)).json()["id"]
    (rq_id,) = await store.redis.lrange("rq:queue:video", 0, -1)
    assert rq_id.startswith(f"{job_id}-")
    with Redis.from_url(gateway.settings.redis_url) as raw:
        fields = raw.hgetall(f"rq:job:{rq_id}")
    assert json.loads(zlib.decompress(fields[b"data"])) == [TASK, None, [job_id], {}]
    assert (fields[b"timeout"], fields[b"result_ttl"]) == (b"-1", b"0")


async def test_each_post_creates_a_job(gateway: Served, clip: Path) -> None:
    answers = await asyncio.gather(*(gateway.post_video(clip) for _ in range(6)))
    assert len({answer.json()["id"] for answer in answers}) == 6
    assert len(gateway.files) == 6


INVALID_OPTIONS = [
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


async def test_an_invalid_option_is_named(gateway: Served, store: Store, clip: Path) -> None:
    for options, message in INVALID_OPTIONS:
        detail = problem(await gateway.post_video(clip, **options), 422, "invalid_option")
        assert detail.startswith(message), (options, detail)
    await nothing_stored(gateway, store)


async def test_a_repeated_option_is_named(gateway: Served, store: Store, clip: Path) -> None:
    answer = await gateway.client.post("/captions", data={"seed": ["1", "2"]}, files={"file": clip.read_bytes()})
    assert problem(answer, 422, "invalid_option") == "seed: given more than once"
    twice = [("file", ("a.mp4", clip.read_bytes())), ("file", ("b.mp4", clip.read_bytes()))]
    assert problem(await gateway.client.post("/captions", files=twice), 422, "invalid_option").startswith("file")
    await nothing_stored(gateway, store)


async def test_a_form_without_a_file_is_refused(gateway: Served, store: Store) -> None:
    answer = await gateway.client.post("/captions", files={"video": b"abc"})
    assert problem(answer, 422, "invalid_option").startswith("file: ")
    await nothing_stored(gateway, store)


async def test_a_file_that_is_not_a_video_is_refused(
    gateway: Served, store: Store, clip: Path, make_clip, tmp_path
) -> None:
    path = tmp_path / "file.mp4"
    for body in (b"", b"hello " * 99, clip.read_bytes()[:-500]):
        path.write_bytes(body)
        problem(await gateway.post_video(path), 422, "not_a_video")
    problem(await gateway.post_video(make_clip(path, 1.0, video=False)), 422, "not_a_video")
    await nothing_stored(gateway, store)


async def test_unsupported_codecs_large_frames_and_long_videos_are_refused(
    serve: Serve, store: Store, clip: Path, make_clip, tmp_path
) -> None:
    async with serve(max_pixels=160 * 100, max_duration_s=2.0) as gateway:
        foreign = make_clip(tmp_path / "a.avi", 0.5, codec="huffyuv", pix_fmt="yuv422p")
        problem(await gateway.post_video(foreign), 415, "unsupported_media")
        problem(await gateway.post_video(clip), 413, "video_too_large")
        long = make_clip(tmp_path / "long.mp4", 2.5, size=(64, 48))
        problem(await gateway.post_video(long), 422, "video_too_long")
        await nothing_stored(gateway, store)


async def test_a_file_that_is_too_large_is_refused_with_and_without_content_length(serve: Serve, store: Store) -> None:
    async with serve(max_upload_bytes=3_000_000) as gateway:
        problem(await gateway.client.post("/captions", files={"file": bytes(5_000_000)}), 413, "video_too_large")
        problem(await gateway.client.post("/captions", files={"file": bytes(3_000_001)}), 413, "video_too_large")

        def chunks() -> Iterator[bytes]:
            yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            for _ in range(400):
                yield bytes(65_536)

        def upload() -> httpx.Response:  # httpx's AsyncClient cannot read an answer that comes before the body's end
            with httpx.Client(base_url=gateway.url, trust_env=False) as client:
                headers = {"content-type": "multipart/form-data; boundary=b"}
                return client.post("/captions", content=chunks(), headers=headers)

        problem(await asyncio.to_thread(upload), 413, "video_too_large")
        await nothing_stored(gateway, store)


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


async def test_without_enough_free_space_an_upload_is_refused(serve: Serve, store: Store, clip: Path) -> None:
    async with serve(min_free_bytes=1 << 62) as gateway:
        answer = await gateway.post_video(clip)
        problem(answer, 507, "storage_full")
        assert answer.json()["retryable"] is True
        text = await gateway.client.post("/recaption", json={"prompt": "a fox"})
        problem(text, 507, "storage_full")
        await nothing_stored(gateway, store)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted file system with space for two megabytes and twelve files. Needs root."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    path = tmp_path / "small"
    path.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=12", "tmpfs", str(path)]
    if subprocess.run(mounting, capture_output=True, check=False).returncode != 0:
        pytest.skip("file systems cannot be mounted on this machine")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


async def test_an_upload_to_a_full_disk_is_refused(
    serve: Serve, store: Store, clip: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def body(size: int) -> dict[str, bytes]:
        return {"file": clip.read_bytes() + bytes(size)}

    async def chunks(size: int) -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(size // 65_536):
            yield bytes(65_536)

    form = {"content-type": "multipart/form-data; boundary=b"}
    async with serve(data_dir=small_disk / "data") as gateway:
        post = gateway.client.post
        problem(await post("/captions", files=body(3_000_000)), 507, "storage_full")  # because of its length
        problem(
            await post("/captions", content=chunks(3_000_000), headers=form), 507, "storage_full"
        )  # because of the free space
        with monkeypatch.context() as unchecked:
            unchecked.setattr("service.contract.storage.local.LocalStorage.check_free_space", lambda *_: None)
            problem(await post("/captions", files=body(3_000_000)), 507, "storage_full")  # because the write fails
            problem(await post("/captions", content=chunks(9_000_000), headers=form), 507, "storage_full")
        await nothing_stored(gateway, store)
        for number in range(12):
            with suppress(OSError):
                (small_disk / str(number)).touch()
        problem(await post("/captions", files=body(0)), 507, "storage_full")  # no free inode for another file
        await nothing_stored(gateway, store)
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


async def test_an_invalid_form_is_refused(gateway: Served, store: Store) -> None:
    headers = {"content-type": "multipart/form-data; boundary=b"}
    for name, body in BROKEN_BODIES.items():
        answer = await gateway.client.post("/captions", content=body, headers=headers)
        assert problem(answer, 422, "invalid_option"), name
    await nothing_stored(gateway, store)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a" * 70_000])
async def test_a_video_in_another_field_is_answered_with_the_right_name(gateway: Served, content: bytes) -> None:
    answer = await gateway.client.post("/captions", files={"video": ("clip.mp4", content)})
    problem(answer, 422, "invalid_option")
    assert "video: unknown file; send the video in the form field `file`" in answer.json()["detail"]


async def test_missing_boundaries_and_other_content_types_are_refused(gateway: Served, store: Store) -> None:
    post = gateway.client.post
    answer = await post("/captions", content=b"x", headers={"content-type": "multipart/form-data"})
    problem(answer, 422, "invalid_option")
    problem(await post("/captions", content=b"x", headers={"content-type": "video/mp4"}), 415, "unsupported_media")
    problem(await post("/captions", data={"url": "x"}), 415, "unsupported_media")
    problem(await post("/captions"), 415, "unsupported_media")
    await nothing_stored(gateway, store)


async def test_invalid_urls_are_refused(gateway: Served, store: Store) -> None:
    post = gateway.client.post
    problem(await post("/captions", json={"url": "http://127.0.0.1/a.mp4"}), 422, "url_forbidden")
    problem(await post("/captions", json={"url": "http://127.0.0.1/a.mp4", "sed": 1}), 422, "invalid_option")
    problem(await post("/captions", json={"url": "http://127.0.0.1/a.mp4", "seed": "1"}), 422, "invalid_option")
    problem(await post("/captions", json={}), 422, "invalid_option")
    problem(await post("/captions", json=[1]), 422, "invalid_option")
    await nothing_stored(gateway, store)


async def test_an_interrupted_upload_is_removed(gateway: Served, store: Store) -> None:
    host = gateway.url.removeprefix("http://")
    _, writer = await asyncio.open_connection(*host.split(":"))
    head = f"POST /captions HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9000000\r\n"
    head += "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    writer.write(head.encode() + part + bytes(4_000_000))
    await writer.drain()

    async def part_file_exists() -> bool:
        return any(name.endswith(".part") for name in gateway.files)

    await eventually(part_file_exists)
    writer.close()
    await writer.wait_closed()

    async def no_files_exist() -> bool:
        return gateway.files == []

    await eventually(no_files_exist)
    await nothing_stored(gateway, store)


async def test_an_upload_that_cannot_be_recorded_is_removed(
    gateway: Served, store: Store, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = gateway.app.state.gateway

    async def fail(record: Record, reservation: str) -> bool:
        assert gateway.files == [record.id], "the video is stored before its record"
        await store.create(record, reservation)
        raise RedisConnectionError("the reply is lost")

    with monkeypatch.context() as broken:
        broken.setattr(state.store, "create", fail)
        problem(await gateway.post_video(clip), 503, "queue_unavailable")
        await nothing_stored(gateway, store)

        async def fail_too(job_id: str) -> None:
            raise RedisConnectionError("still unreachable")

        broken.setattr(state.store, "delete", fail_too)
        problem(await gateway.post_video(clip), 503, "queue_unavailable")
    assert gateway.files == await store.redis.zrange("sharecap:jobs", 0, -1), "a job that may exist has its video"


async def test_a_lost_wake_up_does_not_lose_the_job(
    gateway: Served, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(kind: JobKind, job_id: str) -> None:
        raise RedisConnectionError("unreachable")

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
async def test_a_redis_that_refuses_writes(gateway: Served, store: Store, clip: Path, setting: str) -> None:
    job = (await gateway.post_video(clip)).json()
    await store.cancel(job["id"])
    await store.redis.config_set(setting, 1)
    try:
        posted = await gateway.post_video(clip)
        deleted = await gateway.client.delete(job["links"]["self"])
        recaption = await gateway.client.post("/recaption", json={"prompt": "A fox"}, headers={"Prefer": "wait=0"})
    finally:
        await store.redis.config_set(setting, 0)
    for answer in (posted, recaption):
        problem(answer, *((507, "storage_full") if setting == "maxmemory" else (503, "queue_unavailable")))
    if setting == "maxmemory":
        assert deleted.status_code == 204, "deleting needs no memory"
    else:
        problem(deleted, 503, "queue_unavailable")
        assert (await gateway.client.delete(job["links"]["self"])).status_code == 204
    assert gateway.files == [] and await store.redis.zcard(JOBS) == 0


async def test_a_video_can_be_waited_for(gateway: Served, store: Store, worker: ScriptedWorker, clip: Path) -> None:
    wait = {"Prefer": "respond-async, wait=20"}
    files = {"file": clip.read_bytes()}
    problem(await gateway.client.post("/captions", files=files, headers=wait), 503, "no_worker")
    await nothing_stored(gateway, store)
    await worker.show_card()
    working = worker.serve(video_events)
    answer = await gateway.client.post("/captions", files=files, headers=wait)
    working.cancel()
    assert (answer.status_code, answer.headers["preference-applied"]) == (200, "wait=20")
    job = answer.json()
    assert (job["status"], job["caption"]) == ("completed", "A light square moves to the right.")
    assert job["differentials"][0]["text"] == "A light square."


@pytest.mark.parametrize(
    ("filename", "name"),
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
def test_a_file_name_is_only_a_label(filename: str, name: str | None) -> None:
    assert plain_name(filename) == name


async def test_repeated_names_are_found_quickly(gateway: Served) -> None:
    many = ",".join(f'"n{number}":1' for number in range(60_000))
    async with asyncio.timeout(5):
        answer = await gateway.client.post(
            "/captions", content="{" + many + ',"n59999":2}', headers={"Content-Type": "application/json"}
        )
    assert (answer.status_code, answer.json()["detail"]) == (422, "n59999: given more than once")
    surrogate = await gateway.client.post(
        "/captions", content=r'{"\ud800":1,"\ud800":2}', headers={"Content-Type": "application/json"}
    )
    assert (surrogate.status_code, surrogate.json()["code"]) == (422, "invalid_option")


@pytest.mark.parametrize("name", ["9" * 5000 + ".jpg", "9" * 260 + ".jpg", "0.png", "..jpg", "-1.jpg"])
async def test_an_invalid_keyframe_name_is_not_found(gateway: Served, clip: Path, name: str) -> None:
    job_id = (await gateway.post_video(clip)).json()["id"]
    assert (await gateway.client.get(f"/captions/{job_id}/keyframes/{name}")).status_code == 404


async def test_slow_probes_of_one_key_leave_a_probe_free(
    gateway: Served, store: Store, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, test_ends = clip.read_bytes() + b"slow", asyncio.Event()
    probing = 0

    async def slow_probe(path: Path, limits: VideoLimits, starter: ChildStarter) -> VideoInfo:
        nonlocal probing
        if path.read_bytes() == slow:
            probing += 1
            await test_ends.wait()
        return await probe(path, limits, starter)

    monkeypatch.setattr(captions, "probe", slow_probe)
    greedy, patient = [(await ApiKeyStore(store.redis).add(name, KeyLimits()))[1] for name in ("greedy", "patient")]

    async def post(text: str, data: bytes) -> int:
        headers = {"Authorization": f"Bearer {text}"}
        return (await gateway.client.post("/captions", files={"file": data}, headers=headers)).status_code

    async def greedy_probes_are_full() -> bool:
        return probing == PROBES_PER_KEY

    blocked = [asyncio.create_task(post(greedy, slow)) for _ in range(CONCURRENT_PROBES + 1)]
    await eventually(greedy_probes_are_full)
    assert await asyncio.wait_for(post(patient, clip.read_bytes()), 20) == 202
    assert probing == PROBES_PER_KEY < CONCURRENT_PROBES
    test_ends.set()
    await asyncio.gather(*blocked)
