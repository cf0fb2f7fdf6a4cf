"""`Idempotency-Key`: one job for each key, no matter how often and to which gateway the request is repeated."""

import asyncio
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.access.api_keys import ApiKeyStore, KeyLimits
from service.contract.store.keys import JOBS
from service.contract.store.store import Store
from service.local.up import free_port
from tests.service.processes import environment
from tests.service.scripted import ScriptedWorker, Serve, Served, recaption_events, video_events

DAY_S = 24 * 3600


async def entries(store: Store) -> list[str]:
    return sorted(await store.redis.keys("sharecap:idempotency:*"))


async def recaption(gateway: Served, prompt: str = "A fox", key: str = "k", **headers: str) -> httpx.Response:
    headers = {"Idempotency-Key": key, "Prefer": "wait=0", **headers}
    return await gateway.client.post("/recaption", json={"prompt": prompt}, headers=headers)


async def video(gateway: Served, data: bytes, key: str = "k", name: str = "a.mp4", **options: str) -> httpx.Response:
    headers, files = {"Idempotency-Key": key}, {"file": (name, data)}
    return await gateway.client.post("/captions", files=files, data=options, headers=headers)


def conflict(answer: httpx.Response) -> bool:
    return (answer.status_code, answer.json().get("code")) == (422, "idempotency_conflict")


async def test_a_repeated_request_finds_its_job(gateway: Served, store: Store, worker: ScriptedWorker) -> None:
    first, again = await recaption(gateway), await recaption(gateway)
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json() == first.json() and again.headers["location"] == first.headers["location"]
    assert again.headers["idempotency-replayed"] == "true" and "idempotency-replayed" not in first.headers
    job_id = first.json()["id"]
    await worker.append(await worker.claim(job_id), *recaption_events(job_id))
    ended = await recaption(gateway, Prefer="wait=5")
    assert (ended.status_code, ended.json()["caption"]) == (200, "A red fox."), (
        "a repeated request waits even without a live worker"
    )
    streamed = await recaption(gateway, Accept="text/event-stream")
    assert streamed.headers["idempotency-replayed"] == "true" and "event: completed" in streamed.text
    assert await store.redis.zrange(JOBS, 0, -1) == [job_id]


async def test_a_different_body_is_a_conflict(gateway: Served, store: Store, clip: Path) -> None:
    data = clip.read_bytes()
    assert (await recaption(gateway)).status_code == 202
    assert conflict(await recaption(gateway, "A cat"))
    assert conflict(await video(gateway, data))
    first = await video(gateway, data, "v", seed="1", metadata='{"a": "b"}')
    again = await video(gateway, data, "v", metadata='{ "a" : "b" }', seed="1", mode="sliding")
    assert again.json()["id"] == first.json()["id"], "the same options, written differently"
    same: dict[str, Any] = {"key": "v", "seed": "1", "metadata": '{"a": "b"}'}
    for changed in ({"seed": "2"}, {"metadata": '{"a": "c"}'}, {"mode": "fast"}, {"name": "b.mp4"}):
        assert conflict(await video(gateway, data, **{**same, **changed})), changed
    assert conflict(await video(gateway, data + bytes(8), **same))
    assert await store.redis.zcard(JOBS) == 2
    assert gateway.files == [first.json()["id"]]


async def test_a_refused_request_does_not_use_up_the_key(gateway: Served, store: Store, clip: Path) -> None:
    assert (await video(gateway, b"no video")).json()["code"] == "not_a_video"
    assert (await video(gateway, clip.read_bytes(), sed="1")).json()["code"] == "invalid_option"
    assert await entries(store) == []
    assert (await video(gateway, clip.read_bytes())).status_code == 202


@pytest.mark.parametrize("key", ["", '""', "x" * 256, "ü", "a\tb"])
async def test_an_invalid_key_is_refused(gateway: Served, store: Store, key: str) -> None:
    headers = [(b"Idempotency-Key", key.encode()), (b"Prefer", b"wait=0")]
    answer = await gateway.client.post("/recaption", json={"prompt": "A fox"}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_option")
    assert answer.json()["detail"].startswith("Idempotency-Key: ")
    assert await store.redis.keys("*") == []


async def test_quotes_around_a_key_are_ignored(gateway: Served) -> None:
    plain, quoted = await recaption(gateway, key="8e03978e"), await recaption(gateway, key='"8e03978e"')
    assert plain.json()["id"] == quoted.json()["id"]
    twice = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    answer = await gateway.client.post("/recaption", json={"prompt": "A fox"}, headers=twice)
    assert answer.json()["code"] == "invalid_option"


async def test_each_api_key_has_its_own_idempotency_keys(gateway: Served, store: Store) -> None:
    keys = ApiKeyStore(store.redis)
    made = set()
    for name in ("a", "b"):
        _, text = await keys.add(name, KeyLimits())
        for _ in range(2):
            made.add((await recaption(gateway, Authorization=f"Bearer {text}")).json()["id"])
    assert len(made) == 2


async def test_a_clip_is_created_once(gateway: Served, worker: ScriptedWorker, clip: Path) -> None:
    ids = [(await gateway.post_video(clip)).json()["id"] for _ in range(2)]
    for job_id in ids:
        await worker.append(await worker.claim(job_id), *video_events(job_id))
    headers = {"Idempotency-Key": "k", "Prefer": "wait=0"}
    part = {"start_s": 0, "end_s": 2}
    first, again, other = [
        await gateway.client.post(f"/captions/{job_id}/clips", json=part, headers=headers)
        for job_id in (ids[0], ids[0], ids[1])
    ]
    assert first.json()["id"] == again.json()["id"]
    assert conflict(other)


async def test_a_key_expires_after_a_day_but_not_before_its_job(gateway: Served, store: Store) -> None:
    made = await recaption(gateway)
    (entry,) = await entries(store)
    assert await store.redis.ttl(entry) == -1
    assert (await gateway.client.delete(made.headers["location"])).status_code == 204
    assert DAY_S - 60 < await store.redis.ttl(entry) <= DAY_S
    assert conflict(await recaption(gateway)), "a late repetition does not recreate a deleted job"


async def test_a_repeated_request_finishes_what_a_killed_gateway_began(
    gateway: Served, store: Store, clip: Path
) -> None:
    """One gateway was killed after it reserved the id, the other after it also stored the video."""
    data = clip.read_bytes()
    job_id = (await video(gateway, data)).json()["id"]
    for remove_video in (True, False):
        await store.delete(job_id)
        if remove_video:
            (gateway.settings.data_dir / "uploads" / job_id).unlink()
        answer = await video(gateway, data)
        assert (answer.status_code, answer.json()["id"]) == (202, job_id)
        assert "idempotency-replayed" not in answer.headers
        assert gateway.files == [job_id]


async def test_parallel_requests_create_one_job(serve: Serve, store: Store, clip: Path) -> None:
    data = clip.read_bytes()
    async with serve() as one, serve() as two:
        answers = await asyncio.gather(*(video(gateway, data) for gateway in (one, two) for _ in range(6)))
        assert {answer.status_code for answer in answers} == {202}
        (job_id,) = {answer.json()["id"] for answer in answers}
        assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
        assert await store.redis.zrange(JOBS, 0, -1) == one.files == [job_id]
        assert len(await store.redis.lrange("rq:queue:video", 0, -1)) == 1


# -- gateways that are killed between requests


@asynccontextmanager
async def repeatedly_killed_gateway(
    redis_url: str, data_dir: Path, port: int, kills: int, rng: random.Random
) -> AsyncIterator[None]:
    """Run a gateway on `port`, kill and restart it `kills` times at random moments, then let it run."""
    env = environment(REDIS_URL=redis_url, DATA_DIR=str(data_dir), PORT=str(port), MIN_FREE_BYTES="0")
    null = asyncio.subprocess.DEVNULL

    async def run() -> None:
        for start in range(kills + 1):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "service", env=env, stdout=null, stderr=null
            )
            try:
                if start == kills:
                    await process.wait()
                await until_it_listens(port)
                await asyncio.sleep(rng.uniform(0.0, 0.2))
            finally:
                process.send_signal(signal.SIGKILL)
                await process.wait()

    running = asyncio.create_task(run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def until_it_listens(port: int) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return


@pytest.mark.parametrize(("kind", "posts", "kills"), [("recaption", 50, 2), ("video", 10, 2)])
async def test_posts_to_a_repeatedly_killed_gateway_create_one_job(
    *, redis_url: str, store: Store, tmp_path: Path, clip: Path, kind: str, posts: int, kills: int
) -> None:
    data, port, rng = clip.read_bytes(), free_port(), random.Random(4)
    headers = {"Idempotency-Key": "one", "Prefer": "wait=0"}
    lost = 0

    async def post(client: httpx.AsyncClient, seed: int) -> httpx.Response:
        if kind == "recaption":
            return await client.post("/recaption", json={"prompt": "A fox", "seed": seed}, headers=headers)
        files = {"file": ("a.mp4", data)}
        return await client.post("/captions", files=files, data={"seed": str(seed)}, headers=headers)

    async def post_until_answered(client: httpx.AsyncClient, seed: int) -> httpx.Response:
        nonlocal lost
        while True:
            try:
                return await post(client, seed)
            except httpx.TransportError:
                lost += 1
                await asyncio.sleep(rng.uniform(0.02, 0.3))

    async with repeatedly_killed_gateway(redis_url, tmp_path / "data", port, kills, rng):
        limits, url = httpx.Limits(max_connections=None), f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60, limits=limits) as client:
            answers = await asyncio.gather(*(post_until_answered(client, 7) for _ in range(posts)))
            assert conflict(await post_until_answered(client, 8))
    assert lost > posts
    assert {answer.status_code for answer in answers} == {202}
    (job_id,) = {answer.json()["id"] for answer in answers}
    assert await store.redis.zrange(JOBS, 0, -1) == [job_id]
    if kind == "video":
        uploads = tmp_path / "data" / "uploads"
        assert (uploads / job_id).read_bytes() == data
        assert [path.name for path in uploads.iterdir() if path.suffix != ".part"] == [job_id]
