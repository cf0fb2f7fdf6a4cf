"""API keys: authentication before the body is read, and access to the jobs of the own key only."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from service.access import authentication as auth
from service.access.api_keys import ApiKey, ApiKeyStore, KeyLimits
from service.contract.storage.local import keyframe_path
from service.contract.store.store import Store
from service.settings import Settings
from tests.service.processes import environment
from tests.service.scripted import ScriptedWorker, Serve, Served, eventually, video_events

UNLIMITED = KeyLimits(requests_per_minute=None, upload_bytes_per_day=None, jobs=None, streams=None)


@pytest.fixture
async def keys(store: Store) -> ApiKeyStore:
    return ApiKeyStore(store.redis)


@pytest.fixture
async def text(keys: ApiKeyStore) -> str:
    """A key, created before the gateway starts."""
    return (await keys.add("first", UNLIMITED))[1]


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def code(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["code"]


ROUTES = [
    ("POST", "/captions"),
    ("GET", "/captions"),
    ("GET", "/captions/x"),
    ("GET", "/captions/x/events"),
    ("GET", "/captions/x/keyframes/0.jpg"),
    ("POST", "/captions/x/cancel"),
    ("POST", "/captions/x/token"),
    ("GET", "/captions/x/video"),
    ("POST", "/captions/x/clips"),
    ("DELETE", "/captions/x"),
    ("POST", "/recaption"),
    ("GET", "/metrics"),
]
OTHER_REQUESTS = [
    ("GET", "/nowhere"),
    ("GET", "/healthz/"),
    ("GET", "/web/a/b"),
    ("GET", "/web/%2e%2e%2fcaptions"),
    ("OPTIONS", "/captions"),
]


async def test_every_path_except_the_open_ones_needs_a_key(text: str, gateway: Served) -> None:
    wrong = {
        "none": {},
        "basic": {"Authorization": "Basic YTpi"},
        "empty": {"Authorization": "Bearer"},
        "another secret": bearer(text[:-1] + ("0" if text[-1] != "0" else "1")),
        "another id": bearer("sc_" + "0" * 12 + text[15:]),
        "cut": bearer(text[:-1]),
        "longer": bearer(text + "0"),
        "not ASCII": {"Authorization": "Bearer sc_ü".encode()},
        "huge": bearer("sc_" + "0" * 20_000),
    }
    for method, path in ROUTES + OTHER_REQUESTS:
        for name, headers in wrong.items() if path == "/captions" else [("none", {})]:
            answer = await gateway.client.request(method, path, headers=headers)
            assert code(answer) == (401, "unauthorized"), (method, path, name)
            assert answer.headers["www-authenticate"].startswith("Bearer")
        assert (await gateway.client.request(method, path, headers=bearer(text))).status_code != 401, path
    twice = [("Authorization", f"Bearer {text}")] * 2
    assert code(await gateway.client.get("/captions", headers=twice)) == (401, "unauthorized")
    for path in ("/healthz", "/readyz", "/docs", "/openapi.json", "/"):
        assert (await gateway.client.get(path)).status_code != 401, path


def test_every_route_is_open_or_tested() -> None:
    """A new route needs a key unless `OPEN_PATHS` lists it. This test fails until `ROUTES` lists it."""
    from service.app import create_app  # noqa: PLC0415

    paths = set(create_app(Settings()).openapi()["paths"])
    closed = {path for path in paths if not auth.OPEN_PATHS.fullmatch(path)}
    requested = {path.replace("{job_id}", "x").replace("{name}", "0.jpg") for path in closed}
    assert requested == {path for _, path in ROUTES}


async def test_the_service_is_open_until_a_key_is_created(gateway: Served) -> None:
    assert (await gateway.client.get("/captions")).status_code == 200
    assert (await gateway.client.get("/captions", headers=bearer("anything"))).status_code == 200


async def test_creating_a_key_closes_a_running_service_and_revoking_it_does_not_reopen_it(
    gateway: Served, serve: Serve, keys: ApiKeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "CACHE_S", 0.1)
    made = (await gateway.client.post("/recaption", json={"prompt": "A fox"}, headers={"Prefer": "wait=0"})).json()
    key, text = await keys.add("only", UNLIMITED)

    async def closed() -> bool:
        return (await gateway.client.get("/captions")).status_code == 401

    await eventually(closed)
    client = gateway.client
    assert (await client.get("/captions", headers=bearer(text))).json() == {"jobs": [], "cursor": None}
    assert code(await client.get(made["links"]["self"], headers=bearer(text))) == (404, "not_found"), (
        "the job was created without a key"
    )
    revoked = await keys.revoke(key.id)
    assert revoked is not None and revoked.revoked_at is not None

    async def ended() -> bool:
        return (await client.get("/captions", headers=bearer(text))).status_code == 401

    await eventually(ended)
    async with serve() as again:
        for headers in ({}, bearer(text)):
            assert code(await again.client.get("/captions", headers=headers)) == (401, "unauthorized")


async def test_only_a_hash_of_the_key_is_stored(keys: ApiKeyStore, text: str, gateway: Served, store: Store) -> None:
    assert (await gateway.client.get("/captions", headers=bearer(text))).status_code == 200
    secret = text.rpartition("_")[2]
    assert len(bytes.fromhex(secret)) == 32
    for name in await store.redis.keys("*"):
        assert secret not in name
        kind = await store.redis.type(name)
        assert kind != "string" or secret not in await store.redis.get(name)
    (key,) = await keys.all()
    assert key.accepts(text) and not key.accepts(text.upper())


async def test_the_key_is_checked_before_the_body_is_read(text: str, gateway: Served, store: Store) -> None:
    host = gateway.url.removeprefix("http://")

    async def begin(*lines: str) -> bytes:
        reader, writer = await asyncio.open_connection(*host.split(":"))
        head = ("POST /captions HTTP/1.1", f"Host: {host}", "Content-Length: 9000000", *lines)
        writer.write("\r\n".join((*head, "Content-Type: multipart/form-data; boundary=b", "", "")).encode())
        async with asyncio.timeout(5):
            line = await reader.readline()  # no byte of the body has been sent
        writer.close()
        await writer.wait_closed()
        return line

    for wrong in ("X-Nothing: 1", "Authorization: Bearer sc_no"):
        assert b" 401 " in await begin(wrong, "Expect: 100-continue")
        assert b" 401 " in await begin(wrong)
    assert b" 100 " in await begin(f"Authorization: Bearer {text}", "Expect: 100-continue")
    await eventually(lambda: _has_no_files(gateway))
    assert await store.redis.zcard("sharecap:jobs") == 0


async def _has_no_files(gateway: Served) -> bool:
    return gateway.files == []


async def test_without_redis_requests_are_refused(gateway: Served, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise RedisConnectionError("unreachable")

    monkeypatch.setattr(ApiKeyStore, "any_created", fail)
    for headers in ({}, bearer(text)):
        assert code(await gateway.client.get("/captions", headers=headers)) == (503, "queue_unavailable")
    assert (await gateway.client.get("/healthz")).status_code == 200


@pytest.fixture
async def two_clients(
    keys: ApiKeyStore, gateway: Served
) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient, ApiKey]]:
    """Clients of two keys, and the entry of the first key."""
    (mine, my_text), (_, other_text) = await keys.add("mine", UNLIMITED), await keys.add("other", UNLIMITED)
    async with (
        httpx.AsyncClient(base_url=gateway.url, headers=bearer(my_text), timeout=30, trust_env=False) as my,
        httpx.AsyncClient(base_url=gateway.url, headers=bearer(other_text), timeout=30, trust_env=False) as other,
    ):
        yield my, other, mine


async def test_jobs_of_another_key_are_not_found(
    two_clients: tuple[httpx.AsyncClient, httpx.AsyncClient, ApiKey],
    gateway: Served,
    store: Store,
    worker: ScriptedWorker,
    clip: Path,
) -> None:
    my, other, key = two_clients
    made = await my.post("/captions", files={"file": clip.read_bytes()})
    assert made.status_code == 202 and "owner" not in made.json() and key.id not in made.text
    job_id = made.json()["id"]
    path = f"/captions/{job_id}"
    record = await store.record(job_id)
    assert record is not None and record.owner == key.id
    await worker.append(await worker.claim(job_id), *video_events(job_id))
    keyframe = keyframe_path(gateway.settings.data_dir, job_id, 0)
    keyframe.parent.mkdir(parents=True)
    keyframe.write_bytes(b"jpeg")
    clip_request = {"json": {"start_s": 0, "end_s": 2}, "headers": {"Prefer": "wait=0"}}

    async def responses(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [
            await client.get(path),
            await client.get(f"{path}/events"),
            await client.get(f"{path}/events", headers={"Last-Event-ID": "99"}),
            await client.get(f"{path}/keyframes/0.jpg"),
            await client.post(f"{path}/clips", **clip_request),
            await client.post(f"{path}/cancel"),
            await client.delete(path),
        ]

    unknown = await other.get("/captions/cap_" + "0" * 32)
    for answer in await responses(other):
        assert (code(answer), answer.content) == ((404, "not_found"), unknown.content), answer.request.url
    assert (await other.get("/captions")).json()["jobs"] == []
    assert [job["id"] for job in (await my.get("/captions")).json()["jobs"]] == [job_id]
    assert [answer.status_code for answer in await responses(my)] == [200, 200, 204, 200, 202, 200, 204]
    (left,) = (await my.get("/captions")).json()["jobs"]
    assert left["parent"] == job_id
    assert (await my.delete(f"/captions/{left['id']}")).status_code == 204
    assert await store.redis.keys("sharecap:jobs*") == []


async def test_each_key_lists_its_own_jobs(two_clients: tuple[httpx.AsyncClient, httpx.AsyncClient, ApiKey]) -> None:
    made: dict[int, list[str]] = {0: [], 1: []}
    for index in (0, 1, 0, 0, 1):
        answer = await two_clients[index].post("/recaption", json={"prompt": "A fox"}, headers={"Prefer": "wait=0"})
        made[index].insert(0, answer.json()["id"])
    for index, ids in made.items():
        page = (await two_clients[index].get("/captions", params={"limit": 2})).json()
        rest = (await two_clients[index].get("/captions", params={"limit": 2, "cursor": page["cursor"]})).json()
        assert [job["id"] for job in page["jobs"] + rest["jobs"]] == ids


async def test_an_exposed_service_is_never_open(keys: ApiKeyStore, text: str, serve: Serve, store: Store) -> None:
    """Not even if Redis has lost its keys."""
    async with serve(host="0.0.0.0") as gateway:
        assert (await gateway.client.get("/captions", headers=bearer(text))).status_code == 200
        await store.redis.flushall()
        assert code(await gateway.client.get("/captions")) == (401, "unauthorized")


async def test_an_exposed_service_starts_only_with_a_key(redis_url: str, keys: ApiKeyStore, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("0.0.0.0", 0))
        port = str(free.getsockname()[1])
    env = environment(REDIS_URL=redis_url, DATA_DIR=str(tmp_path), HOST="0.0.0.0", PORT=port)
    command = [sys.executable, "-m", "service"]
    key, text = await keys.add("revoked", UNLIMITED)
    await keys.revoke(key.id)
    refused = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert (refused.returncode, refused.stderr.count("\n")) == (78, 1)
    assert "no API key exists" in refused.stderr
    _, text = await keys.add("usable", UNLIMITED)
    process = await asyncio.create_subprocess_exec(*command, env=env, stderr=asyncio.subprocess.DEVNULL)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:

            async def answers() -> bool:
                try:
                    return (await client.get("/captions", headers=bearer(text))).status_code == 200
                except httpx.TransportError:
                    return False

            await eventually(answers, 60)
            assert code(await client.get("/captions")) == (401, "unauthorized")
    finally:
        process.kill()
        await process.wait()
