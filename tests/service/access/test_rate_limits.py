"""RateLimits of a key: refused with 429 and when to come again, counted for all gateways together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest
from service.access.api_keys import ApiKey, KeyLimits, ApiKeyStore

from service.access import rate_limits as limits
from service.access.rate_limits import RateLimits
from service.contract.errors import RateLimited
from service.contract.store.store import Store
from tests.service.scripted import ScriptedWorker, Serve, Served, eventually, recaption_events

NONE: dict[str, int | None] = {
    "requests_per_minute": None,
    "upload_bytes_per_day": None,
    "jobs": None,
    "streams": None,
}
NO_WAIT = {"Prefer": "wait=0"}


async def key_with(store: Store, **some: int) -> tuple[ApiKey, str]:
    return await ApiKeyStore(store.redis).add("limited", KeyLimits(**{**NONE, **some}))


@asynccontextmanager
async def client_of(gateway: Served, text: str) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {text}"}
    async with httpx.AsyncClient(base_url=gateway.url, headers=headers, timeout=30, trust_env=False) as client:
        yield client


def refused(answer: httpx.Response) -> int:
    """Check that the answer is 429; return after how many seconds it says to come again."""
    assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (429, "rate_limited", True)
    return int(answer.headers["retry-after"])


async def recaption(client: httpx.AsyncClient, **headers: str) -> httpx.Response:
    return await client.post("/recaption", json={"prompt": "A fox"}, headers={**NO_WAIT, **headers})


async def test_requests(serve: Serve, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _, text = await key_with(store, requests_per_minute=6)
    _, other = await key_with(store, requests_per_minute=6)
    async with serve() as one, serve() as two, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client_of(gateway, text)) for gateway in (one, two)]
        answers = await asyncio.gather(*(client.get("/captions") for client in clients for _ in range(5)))
        assert sorted(answer.status_code for answer in answers) == [200] * 6 + [429] * 4
        again_s = refused(await clients[0].get("/captions"))
        assert 8 <= again_s <= 10, "one of six comes back every ten seconds"
        assert (await clients[0].get("/healthz")).status_code == 200
        assert (await one.client.get("/captions")).status_code == 401, "strangers spend nothing"
        async with client_of(one, other) as client:
            assert (await client.get("/captions")).status_code == 200
        assert await store.redis.pttl(f"sharecap:spent:{text.rpartition('_')[0]}:requests") <= limits.MINUTE_MS


async def test_requests_come_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MINUTE_MS", 1000)
    (key, _), limited = await key_with(store, requests_per_minute=4), RateLimits(store.redis)
    for _ in range(4):
        await limited.count_request(key)
    with pytest.raises(RateLimited) as error:
        await limited.count_request(key)
    assert error.value.retry_after_s == 1
    await asyncio.sleep(0.3)
    await limited.count_request(key)
    with pytest.raises(RateLimited):
        await limited.count_request(key)


async def test_unfinished_jobs(gateway: Served, store: Store, worker: ScriptedWorker, clip: Path) -> None:
    _, text = await key_with(store, jobs=2)
    async with client_of(gateway, text) as client:
        answers = await asyncio.gather(*(recaption(client) for _ in range(6)))
        made = [answer.json()["id"] for answer in answers if answer.status_code == 202]
        assert len(made) == 2 and sum(refused(answer) > 0 for answer in answers if answer.status_code != 202) == 4
        assert await store.redis.zcard("sharecap:jobs") == 2
        assert refused(await client.post("/captions", files={"file": clip.read_bytes()})) > 0
        await worker.append(await worker.claim(made[0]), *recaption_events(made[0]))
        assert (await recaption(client)).status_code == 202, "one has ended"
        refused(await recaption(client))
        await client.post(f"/captions/{made[1]}/cancel")
        key = {"Idempotency-ApiKey": "k"}
        first = await recaption(client, **key)
        assert first.status_code == 202, "one was cancelled"
        again = await recaption(client, **key)
        assert again.json()["id"] == first.json()["id"], "a repetition makes no job"
        await client.delete(f"/captions/{first.json()['id']}")
        assert (await recaption(client)).status_code == 202, "one was deleted"


async def test_a_refused_upload_is_not_read(gateway: Served, store: Store) -> None:
    _, text = await key_with(store, jobs=1)
    async with client_of(gateway, text) as client:
        await recaption(client)
    assert b" 429 " in await first_line_without_a_body(gateway, text)
    _, text = await key_with(store, upload_bytes_per_day=8_999_999)
    assert b" 413 " in await first_line_without_a_body(gateway, text), "more than any day has"
    assert gateway.files == []


async def first_line_without_a_body(gateway: Served, text: str) -> bytes:
    """Send the head of a POST of nine million bytes; return what is answered to that alone."""
    host = gateway.url.removeprefix("http://")
    reader, writer = await asyncio.open_connection(*host.split(":"))
    head = f"POST /captions HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9000000\r\nAuthorization: Bearer {text}\r\n"
    writer.write(f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n".encode())
    async with asyncio.timeout(5):
        line = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return line


async def spent(store: Store, key: ApiKey) -> float:
    """Return how many of the key's bytes are spent now."""
    back_ms = await store.redis.get(f"sharecap:spent:{key.id}:bytes")
    seconds, micros = await store.redis.time()
    limit = key.limits.upload_bytes_per_day
    assert limit is not None
    return (float(back_ms) - seconds * 1000 - micros / 1000) * limit / limits.DAY_MS if back_ms else 0.0


async def test_uploaded_bytes(gateway: Served, store: Store, clip: Path) -> None:
    data = clip.read_bytes()
    key, text = await key_with(store, upload_bytes_per_day=2 * len(data) + 1000)
    async with client_of(gateway, text) as client:
        for name in ("a", "b"):
            assert (await client.post("/captions", files={"file": (name, data)})).status_code == 202
        assert await spent(store, key) == pytest.approx(2 * len(data), abs=500)
        again_s = refused(await client.post("/captions", files={"file": data}))
        assert 3600 < again_s <= 24 * 3600
        assert len(gateway.files) == 2
        assert (await recaption(client)).status_code == 202, "that is no upload"


async def test_bytes_of_untold_number_are_counted_as_they_come(gateway: Served, store: Store) -> None:
    key, text = await key_with(store, upload_bytes_per_day=4_000_000)
    sent = 0

    async def body(size: int) -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(size // 65_536):
            sent += 65_536
            yield bytes(65_536)
        yield b"\r\n--b--\r\n"

    async with client_of(gateway, text) as client:
        form = {"content-type": "multipart/form-data; boundary=b"}
        answer = await client.post("/captions", content=body(3_000_000), headers=form)
        assert answer.json()["code"] == "not_a_video"
        assert await spent(store, key) == pytest.approx(3_000_000, abs=100_000), "what came is spent"
        refused(await client.post("/captions", content=body(3_000_000), headers=form))
        answer = await client.post("/captions", content=body(50_000_000), headers=form)
        assert answer.status_code in (413, 429)
    assert gateway.files == []


async def test_bytes_that_did_not_come_are_given_back(gateway: Served, store: Store) -> None:
    key, text = await key_with(store, upload_bytes_per_day=10_000_000)
    host = gateway.url.removeprefix("http://")
    _, writer = await asyncio.open_connection(*host.split(":"))
    head = f"POST /captions HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9000000\r\nAuthorization: Bearer {text}\r\n"
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    writer.write(f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n".encode() + part + bytes(2_000_000))
    await writer.drain()

    async def begun() -> bool:
        return await spent(store, key) > 8_000_000

    await eventually(begun)
    writer.close()
    await writer.wait_closed()

    async def given_back() -> bool:
        return await spent(store, key) < 2_500_000

    await eventually(given_back)
    assert gateway.files == []


async def test_open_streams(gateway: Served, store: Store, worker: ScriptedWorker) -> None:
    key, text = await key_with(store, streams=2)
    async with client_of(gateway, text) as client:
        job = (await recaption(client)).json()
        events = job["links"]["events"]
        async with AsyncExitStack() as stack:
            for _ in range(2):
                answer = await stack.enter_async_context(client.stream("GET", events))
                assert answer.status_code == 200
            refused(await client.get(events))
            refused(await client.post("/recaption", json={"prompt": "A fox", "stream": True}))
            assert await store.redis.zcard("sharecap:jobs") == 1, "what cannot be streamed is not made"

        async def closed() -> bool:
            return bool(await store.redis.zcard(f"sharecap:streams:{key.id}") == 0)

        await eventually(closed)
        await worker.append(await worker.claim(job["id"]), *recaption_events(job["id"]))
        for _ in range(3):
            assert "event: completed" in (await client.get(events)).text


async def test_streams_of_a_killed_gateway_are_forgotten_and_those_of_a_living_one_are_not(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STREAM_TTL_MS", 400)
    monkeypatch.setattr(limits, "RENEW_EVERY_S", 0.1)
    key, _ = await key_with(store, streams=2)
    killed, living = RateLimits(store.redis), RateLimits(store.redis)
    renewing = asyncio.create_task(living.renew_streams())
    async with AsyncExitStack() as stack:
        for gateway in (killed, living):
            await stack.enter_async_context(gateway.count_stream(key))
        with pytest.raises(RateLimited):
            await stack.enter_async_context(living.count_stream(key))
        await asyncio.sleep(0.6)
        await stack.enter_async_context(living.count_stream(key))
        with pytest.raises(RateLimited):
            await stack.enter_async_context(living.count_stream(key))
    renewing.cancel()
    assert await store.redis.zcard(f"sharecap:streams:{key.id}") == 0
