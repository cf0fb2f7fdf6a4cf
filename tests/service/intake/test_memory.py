"""Redis' memory: what one key can fill, and what happens before it is full."""

import asyncio
import json
import time

import httpx
import pytest
from redis.exceptions import NoPermissionError

from service.access.api_keys import ApiKeyStore, KeyLimits
from service.contract.store.keys import TEXTS, events_key, job_key, stored_key
from service.contract.store.store import Store
from service.intake import memory
from tests.service.access.test_rate_limits import client_of, key_with, refused
from tests.service.scripted import ScriptedWorker, Serve, Served, recaption_events

NO_WAIT = {"Prefer": "wait=0"}
LARGE_JOB = {"prompt": "🦊" * 4000, "metadata": {f"{k:064}": "🦊" * 512 for k in range(16)}}


async def queue_then_cancel(client: httpx.AsyncClient) -> httpx.Response:
    answer = await client.post("/recaption", json=LARGE_JOB, headers=NO_WAIT)
    if answer.status_code == 202:
        await client.post(f"{answer.headers['location']}/cancel")
    return answer


async def used_memory(store: Store) -> int:
    return int((await store.redis.info("memory"))["used_memory"])


async def test_queue_then_cancel_fills_no_more_than_the_keys_share(gateway: Served, store: Store) -> None:
    limit = 2_000_000
    key, text = await key_with(store, stored_bytes=limit)
    before, started_at, accepted = await used_memory(store), time.monotonic(), 0
    async with client_of(gateway, text) as client:
        for _ in range(200):
            answer = await queue_then_cancel(client)
            if answer.status_code != 202:
                break
            accepted += 1
        assert refused(answer) == 60
        assert "Delete jobs" in answer.json()["detail"]
        grown = await used_memory(store) - before
        seconds = time.monotonic() - started_at
        print(f"{accepted} jobs in {seconds:.1f} s, {grown / accepted / 1024:.0f} KiB each, {grown} bytes in all")
        assert grown < 1.5 * limit
        jobs = (await client.get("/captions?limit=100")).json()["jobs"]
        await client.delete(f"/captions/{jobs[0]['id']}")
        assert (await queue_then_cancel(client)).status_code == 202, "one job was deleted"
        for job in (await client.get("/captions?limit=100")).json()["jobs"]:
            await client.delete(f"/captions/{job['id']}")
    assert not await store.redis.exists(stored_key(key.id))
    assert not await store.redis.exists(TEXTS)


async def test_cancelled_jobs_count_towards_the_jobs_per_hour(gateway: Served, store: Store) -> None:
    _, text = await key_with(store, jobs_per_hour=5, jobs=2)
    async with client_of(gateway, text) as client:
        answers = [await queue_then_cancel(client) for _ in range(6)]
        assert [answer.status_code for answer in answers] == [202] * 5 + [429]
        assert 700 < refused(answers[-1]) <= 720, "one of five jobs is refilled every twelve minutes"
        assert (await client.get("/captions")).status_code == 200


async def test_a_refused_job_spends_nothing(gateway: Served, store: Store) -> None:
    _, text = await key_with(store, jobs_per_hour=2, jobs=1)
    async with client_of(gateway, text) as client:
        first = await client.post("/recaption", json=LARGE_JOB, headers=NO_WAIT)
        for _ in range(3):
            refused(await client.post("/recaption", json=LARGE_JOB, headers=NO_WAIT))
        await client.post(f"{first.headers['location']}/cancel")
        assert (await queue_then_cancel(client)).status_code == 202


def test_a_default_key_is_limited() -> None:
    limits = KeyLimits()
    assert limits.jobs_per_hour == 1000 and limits.stored_bytes == 512 << 20
    stored_before_these_limits = {"requests_per_minute": 600, "upload_bytes_per_day": 1, "jobs": 1, "streams": 1}
    assert KeyLimits.model_validate_json(json.dumps(stored_before_these_limits)) == KeyLimits(
        **stored_before_these_limits, jobs_per_hour=1000, stored_bytes=512 << 20
    )


async def test_the_counted_bytes_are_those_that_redis_uses(
    gateway: Served, store: Store, worker: ScriptedWorker
) -> None:
    key, text = await ApiKeyStore(store.redis).add("any", KeyLimits())
    async with client_of(gateway, text) as client:
        job_id = (await client.post("/recaption", json=LARGE_JOB, headers=NO_WAIT)).json()["id"]
    at_creation = int(await store.redis.get(stored_key(key.id)))
    events = recaption_events(job_id)
    events[1:1] = [events[1]] * 500
    await worker.append(await worker.claim(job_id), *events)
    at_the_end = int(await store.redis.get(stored_key(key.id)))
    used = [await store.redis.memory_usage(key, samples=0) for key in (job_key(job_id), events_key(job_id))]
    print(f"counted {at_creation} bytes at creation and {at_the_end} at the end; Redis uses {sum(used)}")
    assert 50_000 < at_creation < at_the_end
    assert 0.8 * sum(used) < at_the_end < 2 * sum(used)
    await store.delete(job_id)
    await store.delete(job_id)
    assert await store.redis.get(stored_key(key.id)) is None


@pytest.mark.parametrize(
    ("config", "warning"),
    [
        ({"maxmemory": "0"}, "no memory limit"),
        ({"maxmemory": "1gb", "maxmemory-policy": "allkeys-lru"}, "jobs can be lost"),
        ({"maxmemory": "1gb", "maxmemory-policy": "noeviction"}, None),
    ],
)
async def test_a_server_that_cannot_be_guarded_is_reported_at_start(
    serve: Serve, store: Store, caplog: pytest.LogCaptureFixture, config: dict[str, str], warning: str | None
) -> None:
    for name, value in config.items():
        await store.redis.config_set(name, value)
    try:
        async with serve() as gateway:
            await asyncio.sleep(0.1)
            for _ in range(2):
                assert (await queue_then_cancel(gateway.client)).status_code == 202
    finally:
        await store.redis.config_set("maxmemory", 0)
        await store.redis.config_set("maxmemory-policy", "noeviction")
    warnings = [record.getMessage() for record in caplog.records if record.name == memory.__name__]
    assert len(warnings) == (1 if warning else 0)
    assert warning is None or warning in warnings[0]


async def test_a_server_that_forbids_info_is_reported(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(section: str) -> None:
        raise NoPermissionError(section)

    monkeypatch.setattr(store.redis, "info", refuse)
    guard = memory.MemoryGuard(store.redis)
    await guard.warn_if_ineffective()
    await guard.check()
    assert "does not permit INFO" in caplog.text


async def test_new_jobs_are_refused_before_the_memory_is_full(
    gateway: Served, store: Store, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "CACHE_S", 0.0)
    accepted = await gateway.client.post("/recaption", json={"prompt": "A fox"}, headers=NO_WAIT)
    job_id = accepted.json()["id"]
    limit = int(await used_memory(store) / (1 - memory.RESERVED)) + 500_000
    await store.redis.config_set("maxmemory", limit)
    try:
        answer, count = accepted, 0
        while answer.status_code == 202 and count < 100:
            answer, count = await queue_then_cancel(gateway.client), count + 1
        assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (507, "storage_full", True)
        used = await used_memory(store)
        assert 1 < count < 100 and used < 0.9 * limit
        await worker.append(await worker.claim(job_id), *recaption_events(job_id))
        shown = (await gateway.client.get(accepted.headers["location"])).json()
        assert shown["status"] == "completed", "the accepted job can write its events"
        print(f"507 after {count} jobs, at {used / limit:.0%} of maxmemory")
    finally:
        await store.redis.config_set("maxmemory", 0)
    assert (await queue_then_cancel(gateway.client)).status_code == 202
