"""`sharecap health`: exit status 0 with a live worker card of this host, or an answering gateway; else 1."""

import asyncio
import socket

import pytest

from service.contract.store.store import Store
from service.contract.store.worker_cards import WorkerCard
from service.local.up import free_port
from tests.client.conftest import Sharecap, sharecap
from tests.service.scripted import Served

__all__ = ["sharecap"]

HOST = socket.gethostname()


async def check_worker(sharecap: Sharecap, redis_url: str) -> int:
    result = await asyncio.to_thread(sharecap, "health", "worker", "--redis-url", redis_url)
    assert (result.out + result.err).count("\n") == 1
    return result.status


async def test_a_live_worker_of_this_host_is_healthy(sharecap: Sharecap, store: Store, redis_url: str) -> None:
    assert await check_worker(sharecap, redis_url) == 1
    await store.show_worker(WorkerCard(id="w1", host=HOST, model="test/model", slots=4))
    assert await check_worker(sharecap, redis_url) == 0


async def test_an_expired_card_is_not_healthy(sharecap: Sharecap, store: Store, redis_url: str) -> None:
    await store.show_worker(WorkerCard(id="w1", host=HOST, model="test/model", slots=4))
    (key,) = [key async for key in store.redis.scan_iter("sharecap:worker:*")]
    await store.redis.pexpire(key, 1)
    await asyncio.sleep(0.05)
    assert await store.redis.scard("sharecap:workers") == 1, "the set of ids keeps a worker that has died"
    assert await check_worker(sharecap, redis_url) == 1


@pytest.mark.parametrize("host", ["elsewhere", f"{HOST}-2", f"x-{HOST}"])
async def test_a_worker_of_another_host_does_not_count(
    sharecap: Sharecap, store: Store, redis_url: str, host: str
) -> None:
    await store.show_worker(WorkerCard(id="w1", host=host, model="test/model", slots=4))
    assert await check_worker(sharecap, redis_url) == 1


def test_an_unreachable_redis_is_one_line(sharecap: Sharecap) -> None:
    result = sharecap("health", "worker", "--redis-url", "redis://127.0.0.1:9/0")
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert result.err.startswith("error: the Redis server does not answer")


async def test_the_gateway_is_healthy_if_it_answers(sharecap: Sharecap, gateway: Served) -> None:
    for port, status in ((gateway.url.rpartition(":")[2], 0), (str(free_port()), 1)):
        result = await asyncio.to_thread(sharecap, "health", "gateway", "--port", port)
        assert result.status == status
        assert (result.out + result.err).count("\n") == 1
