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
