"""Background loops: the one loop that the reaper, retention, webhooks and the workers' regular tasks use."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from redis.exceptions import RedisError


async def repeat(step: Callable[[], Awaitable[object]], every_s: float, name: str, log: logging.Logger) -> None:
    """Call `step()`, pause for `every_s` seconds, and start again, until cancelled.

    A failing step never ends the loop. An unreachable Redis or disk is logged in one line, any other error with its
    traceback, both as a failure of `name`.
    """
    while True:
        try:
            await step()
        except (RedisError, OSError) as error:
            log.warning("%s failed, next try in %g s: %s", name, every_s, error)
        except Exception:
            log.exception("%s failed, next try in %g s", name, every_s)
        await asyncio.sleep(every_s)
