"""Connections to Redis: a task that uses one ends when it is cancelled, at whatever moment."""

import asyncio
import random

from service.contract.store.connection import connect


async def test_no_cancellation_is_lost(redis_url: str) -> None:
    async with connect(redis_url) as redis:

        async def work() -> None:
            while True:
                await redis.set("key", "value")

        moments = random.Random(0)
        for _ in range(400):
            task = asyncio.create_task(work())
            for _ in range(moments.randint(1, 40)):
                await asyncio.sleep(0)
            task.cancel()
            assert (await asyncio.wait({task}, timeout=2))[0], "the task did not end"
