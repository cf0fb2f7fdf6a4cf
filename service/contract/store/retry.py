"""Two ways to retry Redis.

`RetryFor` and `AsyncRetryFor` retry one command for a limited time; `retry_redis` repeats a call until the outage ends.

Every write of this service may be repeated without effect (`scripts.py`), so a command whose reply was lost is simply
sent again.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import AbstractBackoff, ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0

T = TypeVar("T")
Retryable = Callable[[Exception], bool]


async def retry_redis(call: Callable[[], Awaitable[T]]) -> T:
    """Return the result of `call()`, repeated while Redis cannot be reached or refuses writes."""
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            return await call()
        except (RedisConnectionError, RedisTimeoutError, ResponseError) as error:
            if isinstance(error, ResponseError) and not refuses_writes(error):
                raise
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def refuses_writes(error: Exception) -> bool:
    """Return whether the server refuses writes for the moment: memory or disk is full, or it is or lacks a replica."""
    if isinstance(error, OutOfMemoryError | ReadOnlyError):
        return True
    return isinstance(error, ResponseError) and bool(re.search(r"\b(MISCONF|NOREPLICAS) ", str(error)))


class RetryFor(Retry):
    """Retries a command until `patience_s` seconds after its first attempt. For blocking clients."""

    def __init__(self, patience_s: float) -> None:
        super().__init__(_backoff(), retries=-1)
        self._patience_s = patience_s

    def call_with_retry(
        self, do: Callable[[], T], fail: Any, is_retryable: Retryable | None = None, with_failure_count: bool = False
    ) -> T:
        return super().call_with_retry(do, fail, _Until(self._patience_s, is_retryable), with_failure_count)


class AsyncRetryFor(AsyncRetry):
    """Retries a command until `patience_s` seconds after its first attempt. For asynchronous clients."""

    def __init__(self, patience_s: float) -> None:
        super().__init__(_backoff(), retries=-1)
        self._patience_s = patience_s

    async def call_with_retry(
        self,
        do: Callable[[], Awaitable[T]],
        fail: Any,
        is_retryable: Retryable | None = None,
        with_failure_count: bool = False,
    ) -> T:
        return await super().call_with_retry(do, fail, _Until(self._patience_s, is_retryable), with_failure_count)


class _Until:
    """Allows another attempt until `patience_s` seconds after construction, if redis-py's own condition allows it."""

    def __init__(self, patience_s: float, is_retryable: Retryable | None) -> None:
        self._end = time.monotonic() + patience_s
        self._is_retryable = is_retryable

    def __call__(self, error: Exception) -> bool:
        return time.monotonic() < self._end and (self._is_retryable is None or self._is_retryable(error))


def _backoff() -> AbstractBackoff:
    return ExponentialBackoff(cap=0.5, base=0.05)
