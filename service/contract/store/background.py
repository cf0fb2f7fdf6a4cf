"""Background loops: the one loop that the reaper, retention, webhooks and the workers' regular tasks use."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from redis.exceptions import RedisError


async def repeat(
    step: Callable[[], Awaitable[object]],
    every_s: float,
    name: str,
    log: logging.Logger,
    *,
    retry_s: float | None = None,
    max_retry_s: float = 0.0,
) -> None:
    """Call `step()`, pause for `every_s` seconds, and start again, until cancelled.

    A failing step never ends the loop. The next one starts after `retry_s` seconds (default: `every_s`); each further
    failure in a row doubles this pause, up to `max_retry_s` if that is longer. Redis and disk errors are logged in one
    line, others with a traceback; `name` says which loop failed.
    """
    first_s = every_s if retry_s is None else retry_s
    pause_s = first_s
    while True:
        try:
            await step()
        except Exception as error:
            _log_failure(error, name, pause_s, log)
            await asyncio.sleep(pause_s)
            pause_s = max(first_s, min(2 * pause_s, max_retry_s))
        else:
            pause_s = first_s
            await asyncio.sleep(every_s)


def _log_failure(error: Exception, name: str, pause_s: float, log: logging.Logger) -> None:
    if isinstance(error, RedisError | OSError):
        log.warning("%s failed, next try in %g s: %s", name, pause_s, error)
    else:
        log.error("%s failed, next try in %g s", name, pause_s, exc_info=error)
