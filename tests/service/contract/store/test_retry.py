"""Retrying Redis: outages are waited for, other errors are raised."""

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.contract.store import retry
from service.contract.store.retry import retry_redis
from service.contract.store.store import RetryingStore, Store
from tests.service.contract.store.sample_jobs import new_record

OUTAGES = [
    RedisConnectionError("connection refused"),
    RedisTimeoutError("no reply"),
    OutOfMemoryError("command not allowed when used memory > 'maxmemory'"),
    ReadOnlyError("You can't write against a read only replica."),
    ResponseError("MISCONF Redis is configured to save RDB snapshots"),
    ResponseError("NOREPLICAS Not enough good replicas to write."),
]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.001)


@pytest.mark.parametrize("outage", OUTAGES, ids=str)
async def test_a_call_is_repeated_until_the_outage_ends(outage: Exception) -> None:
    failures = [outage] * 3

    async def call() -> str:
        if failures:
            raise failures.pop()
        return "reply"

    assert await retry_redis(call) == "reply"
    assert failures == []


async def test_other_errors_are_not_retried() -> None:
    async def call() -> None:
        raise ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value")

    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await retry_redis(call)


async def test_the_workers_store_retries_reads_and_writes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    record = new_record()
    await store.create(record)
    for name in ("claim", "record", "entries", "on_last_chance", "kind_and_status"):
        monkeypatch.setattr(Store, name, _failing_once(getattr(Store, name)))
    retrying = RetryingStore(store.redis)
    lease = await retrying.claim(record.id)
    assert lease and lease.epoch == 1
    assert await retrying.record(record.id) == record
    assert [stored.seq async for stored in retrying.events(record.id)] == [1]
    assert not await retrying.on_last_chance(record.id) and await retrying.kind_and_status(record.id)


def _failing_once(method):
    failed = False

    async def call(*arguments, **options):
        nonlocal failed
        result = await method(*arguments, **options)
        if not failed:  # the reply to the first call is lost
            failed = True
            raise RedisConnectionError("connection lost")
        return result

    return call
