"""The connections to Redis: a task that uses one always ends when it is cancelled."""

import asyncio
import random

from service.contract.store.connection import connect


async def test_no_cancellation_is_lost(redis_url: str) -> None:
    async with connect(redis_url) as redis:

        async def work() -> None:
            while True:
                await redis.set("key", "value")

        instants = random.Random(0)
        for _ in range(400):
            task = asyncio.create_task(work())
            for _ in range(instants.randint(1, 40)):
                await asyncio.sleep(0)
            task.cancel()
            assert (await asyncio.wait({task}, timeout=2))[0], "the task goes on"
