"""Rate limits of API keys: 429 with `Retry-After`, counted for all gateways together."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from service.access import rate_limits
from service.access.api_keys import ApiKey, ApiKeyStore, KeyLimits
from service.access.rate_limits import RateLimits
from service.contract.errors import RateLimited
from service.contract.store.store import Store
from tests.service.scripted import ScriptedWorker, Serve, Served, eventually, recaption_events

UNLIMITED: dict[str, int | None] = {
    "requests_per_minute": None,
    "upload_bytes_per_day": None,
    "jobs": None,
    "jobs_per_hour": None,
    "stored_bytes": None,
    "streams": None,
}
NO_WAIT = {"Prefer": "wait=0"}


async def key_with(store: Store, **limits: int) -> tuple[ApiKey, str]:
    return await ApiKeyStore(store.redis).add("limited", KeyLimits(**{**UNLIMITED, **limits}))


@asynccontextmanager
async def client_of(gateway: Served, text: str) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {text}"}
    async with httpx.AsyncClient(base_url=gateway.url, headers=headers, timeout=30, trust_env=False) as client:
        yield client


def refused(answer: httpx.Response) -> int:
    """Check that the response is 429 and return its `Retry-After` in seconds."""
    assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (429, "rate_limited", True)
    return int(answer.headers["retry-after"])


async def recaption(client: httpx.AsyncClient, **headers: str) -> httpx.Response:
    return await client.post("/recaption", json={"prompt": "A fox"}, headers={**NO_WAIT, **headers})


async def test_requests_are_limited_across_gateways(
    serve: Serve, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, text = await key_with(store, requests_per_minute=6)
    _, other = await key_with(store, requests_per_minute=6)
    async with serve() as one, serve() as two, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client_of(gateway, text)) for gateway in (one, two)]
        answers = await asyncio.gather(*(client.get("/captions") for client in clients for _ in range(5)))
        assert sorted(answer.status_code for answer in answers) == [200] * 6 + [429] * 4
        retry_after_s = refused(await clients[0].get("/captions"))
        assert 8 <= retry_after_s <= 10, "one of six requests is refilled every ten seconds"
        assert (await clients[0].get("/healthz")).status_code == 200
        assert (await one.client.get("/captions")).status_code == 401, "requests without a key spend nothing"
        async with client_of(one, other) as client:
            assert (await client.get("/captions")).status_code == 200
        assert await store.redis.pttl(f"sharecap:spent:{text.rpartition('_')[0]}:requests") <= rate_limits.MINUTE_MS


async def test_the_request_bucket_refills(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "MINUTE_MS", 1000)
    (key, _), limits = await key_with(store, requests_per_minute=4), RateLimits(store.redis)
    for _ in range(4):
        await limits.count_request(key)
    with pytest.raises(RateLimited) as error:
        await limits.count_request(key)
    assert error.value.retry_after_s == 1
    await asyncio.sleep(0.3)
    await limits.count_request(key)
    with pytest.raises(RateLimited):
        await limits.count_request(key)


async def test_unfinished_jobs_are_limited(gateway: Served, store: Store, worker: ScriptedWorker, clip: Path) -> None:
    _, text = await key_with(store, jobs=2)
    async with client_of(gateway, text) as client:
        answers = await asyncio.gather(*(recaption(client) for _ in range(6)))
        made = [answer.json()["id"] for answer in answers if answer.status_code == 202]
        assert len(made) == 2 and sum(refused(answer) > 0 for answer in answers if answer.status_code != 202) == 4
        assert await store.redis.zcard("sharecap:jobs") == 2
        assert refused(await client.post("/captions", files={"file": clip.read_bytes()})) > 0
        await worker.append(await worker.claim(made[0]), *recaption_events(made[0]))
        assert (await recaption(client)).status_code == 202, "one job has ended"
        refused(await recaption(client))
        await client.post(f"/captions/{made[1]}/cancel")
        key = {"Idempotency-Key": "k"}
        first = await recaption(client, **key)
        assert first.status_code == 202, "one job was cancelled"
        again = await recaption(client, **key)
        assert again.json()["id"] == first.json()["id"], "a repeated request creates no job"
        await client.delete(f"/captions/{first.json()['id']}")
        assert (await recaption(client)).status_code == 202, "one job was deleted"


async def test_a_refused_upload_is_not_read(gateway: Served, store: Store) -> None:
    _, text = await key_with(store, jobs=1)
    async with client_of(gateway, text) as client:
        await recaption(client)
    assert b" 429 " in await first_line_without_a_body(gateway, text)
    _, text = await key_with(store, upload_bytes_per_day=8_999_999)
    assert b" 413 " in await first_line_without_a_body(gateway, text), "more than the limit of a whole day"
    assert gateway.files == []


async def first_line_without_a_body(gateway: Served, text: str) -> bytes:
    """Send the headers of a POST of nine million bytes; return the first line of the response to the headers alone."""
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
    """Return how many of the key's bytes are currently spent."""
    full_at_ms = await store.redis.get(f"sharecap:spent:{key.id}:bytes")
    seconds, micros = await store.redis.time()
    limit = key.limits.upload_bytes_per_day
    assert limit is not None
    return (float(full_at_ms) - seconds * 1000 - micros / 1000) * limit / rate_limits.DAY_MS if full_at_ms else 0.0


async def test_uploaded_bytes_are_limited(gateway: Served, store: Store, clip: Path) -> None:
    data = clip.read_bytes()
    key, text = await key_with(store, upload_bytes_per_day=2 * len(data) + 1000)
    async with client_of(gateway, text) as client:
        for name in ("a", "b"):
            assert (await client.post("/captions", files={"file": (name, data)})).status_code == 202
        assert await spent(store, key) == pytest.approx(2 * len(data), abs=500)
        retry_after_s = refused(await client.post("/captions", files={"file": data}))
        assert 3600 < retry_after_s <= 24 * 3600
        assert len(gateway.files) == 2
        assert (await recaption(client)).status_code == 202, "a recaption uploads nothing"


async def test_bytes_of_an_upload_of_unknown_length_are_counted_as_they_arrive(gateway: Served, store: Store) -> None:
    key, text = await key_with(store, upload_bytes_per_day=4_000_000)
    sent = 0

    def body(size: int) -> Iterator[bytes]:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(size // 65_536):
            sent += 65_536
            yield bytes(65_536)
        yield b"\r\n--b--\r\n"

    def upload(size: int) -> httpx.Response:
        headers = {"content-type": "multipart/form-data; boundary=b", "authorization": f"Bearer {text}"}
        with httpx.Client(base_url=gateway.url, headers=headers, trust_env=False) as client:
            return client.post("/captions", content=body(size))

    answer = await asyncio.to_thread(upload, 3_000_000)
    assert answer.json()["code"] == "not_a_video"
    assert await spent(store, key) == pytest.approx(3_000_000, abs=100_000), "the received bytes are spent"
    refused(await asyncio.to_thread(upload, 3_000_000))
    sent_before = sent
    answer = await asyncio.to_thread(upload, 50_000_000)
    assert answer.status_code in (413, 429)
    assert sent - sent_before < 20_000_000, "the rest of the upload is not read"
    assert gateway.files == []


async def test_bytes_that_were_not_received_are_refunded(gateway: Served, store: Store) -> None:
    key, text = await key_with(store, upload_bytes_per_day=10_000_000)
    host = gateway.url.removeprefix("http://")
    _, writer = await asyncio.open_connection(*host.split(":"))
    head = f"POST /captions HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9000000\r\nAuthorization: Bearer {text}\r\n"
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    writer.write(f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n".encode() + part + bytes(2_000_000))
    await writer.drain()

    async def spent_ahead() -> bool:
        return await spent(store, key) > 8_000_000

    await eventually(spent_ahead)
    writer.close()
    await writer.wait_closed()

    async def refunded() -> bool:
        return await spent(store, key) < 2_500_000

    await eventually(refunded)
    assert gateway.files == []


async def test_open_streams_are_limited(gateway: Served, store: Store, worker: ScriptedWorker) -> None:
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
            assert await store.redis.zcard("sharecap:jobs") == 1, "no job is created if it cannot be streamed"

        async def closed() -> bool:
            return bool(await store.redis.zcard(f"sharecap:streams:{key.id}") == 0)

        await eventually(closed)
        await worker.append(await worker.claim(job["id"]), *recaption_events(job["id"]))
        for _ in range(3):
            assert "event: completed" in (await client.get(events)).text


async def test_streams_of_a_killed_gateway_expire_and_those_of_a_running_one_do_not(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limits, "STREAM_TTL_MS", 400)
    monkeypatch.setattr(rate_limits, "RENEW_STREAMS_EVERY_S", 0.1)
    key, _ = await key_with(store, streams=2)
    killed, running = RateLimits(store.redis), RateLimits(store.redis)
    renewing = asyncio.create_task(running.renew_streams())
    async with AsyncExitStack() as stack:
        for gateway in (killed, running):
            await stack.enter_async_context(gateway.count_stream(key))
        with pytest.raises(RateLimited):
            await stack.enter_async_context(running.count_stream(key))
        await asyncio.sleep(0.6)
        await stack.enter_async_context(running.count_stream(key))
        with pytest.raises(RateLimited):
            await stack.enter_async_context(running.count_stream(key))
    renewing.cancel()
    assert await store.redis.zcard(f"sharecap:streams:{key.id}") == 0
