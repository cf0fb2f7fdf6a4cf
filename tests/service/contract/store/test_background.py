"""Background loops: they survive failing steps, and end when they are cancelled."""

import asyncio
import logging

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from service.contract.store.background import repeat

log = logging.getLogger("test")


async def test_a_loop_survives_outages_and_bugs(caplog: pytest.LogCaptureFixture) -> None:
    errors: list[Exception] = [RedisConnectionError("refused"), OSError("disk"), KeyError("bug")]
    done = asyncio.Event()

    async def step() -> None:
        if errors:
            raise errors.pop(0)
        done.set()

    task = asyncio.create_task(repeat(step, 0.001, "reaping", log))
    async with asyncio.timeout(5):
        await done.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    outage, disk, bug = caplog.records
    assert (outage.levelname, disk.levelname, bug.levelname) == ("WARNING", "WARNING", "ERROR")
    assert "reaping failed" in outage.message and "refused" in outage.message
    assert outage.exc_info is None and bug.exc_info is not None


async def test_the_pause_grows_while_a_loop_keeps_failing(caplog: pytest.LogCaptureFixture) -> None:
    outcomes: list[Exception | None] = [*(KeyError("bug") for _ in range(4)), None, KeyError("bug"), None]
    done = asyncio.Event()

    async def step() -> None:
        outcome = outcomes.pop(0)
        if not outcomes:
            done.set()
        elif outcome is not None:
            raise outcome

    task = asyncio.create_task(repeat(step, 0, "reading", log, retry_s=0.001, max_retry_s=0.003))
    async with asyncio.timeout(5):
        await done.wait()
    task.cancel()
    pauses = [record.message.removeprefix("reading failed, next try in ") for record in caplog.records]
    assert pauses == ["0.001 s", "0.002 s", "0.003 s", "0.003 s", "0.001 s"]
