"""Connections to Redis as every process here makes them.

redis-py sends by `asyncio.wait_for`, which on Python 3.11 swallows a cancellation that comes as the sending ends
(cpython issue 86296, mended in 3.12): a task asked to end would go on for ever. Here the time limit of sending is an
`asyncio.timeout`, which loses none.

Commands are tried again for some seconds, through a server's restart. That is safe for all that this service writes:
its scripts may be repeated (`scripts.py`).
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from redis.asyncio import BlockingConnectionPool, Connection, ConnectionPool, Redis, SSLConnection
from redis.asyncio import UnixDomainSocketConnection as UnixConnection
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import AbstractBackoff, ExponentialBackoff
from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

T = TypeVar("T")
Retryable = Callable[[Exception], bool]


class _Until:
    """Whether there is time for another try: until `patience_s` after the first one."""

    def __init__(self, patience_s: float, also: Retryable | None) -> None:
        self._end = time.monotonic() + patience_s
        self._also = also

    def __call__(self, error: Exception) -> bool:
        return time.monotonic() < self._end and (self._also is None or self._also(error))


def _backoff() -> AbstractBackoff:
    return ExponentialBackoff(cap=0.5, base=0.05)


class RetryFor(Retry):
    """Tries a command again and again until `patience_s` seconds after the first try. For blocking clients."""

    def __init__(self, patience_s: float) -> None:
        super().__init__(_backoff(), retries=-1)
        self._patience_s = patience_s

    def call_with_retry(
        self, do: Callable[[], T], fail: Any, is_retryable: Retryable | None = None, with_failure_count: bool = False
    ) -> T:
        return super().call_with_retry(do, fail, _Until(self._patience_s, is_retryable), with_failure_count)


class AsyncRetryFor(AsyncRetry):
    """The same for asynchronous clients."""

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


class _Cancellable(AbstractConnection):
    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        timeout_s, self.socket_timeout = self.socket_timeout, None
        try:
            async with asyncio.timeout(timeout_s):
                await super().send_packed_command(command, check_health)
        except TimeoutError:
            raise RedisTimeoutError("Timeout writing to socket") from None
        finally:
            self.socket_timeout = timeout_s


class _Tcp(_Cancellable, Connection):
    pass


class _Unix(_Cancellable, UnixConnection):
    pass


class _Tls(_Cancellable, SSLConnection):
    pass


_CONNECTIONS: dict[type[AbstractConnection], type[AbstractConnection]] = {
    Connection: _Tcp,
    UnixConnection: _Unix,
    SSLConnection: _Tls,
}


def connect(url: str, connections: int | None = None, patience_s: float | None = None, **options: Any) -> Redis:
    """Return a client that decodes answers to `str`. With `connections`, whoever finds them all busy waits for one.

    A command that fails is tried again for `patience_s`; none is redis-py's default. `options` are redis-py's. Raises
    ValueError for a URL that is none of Redis.
    """
    if patience_s is not None:
        options["retry"] = AsyncRetryFor(patience_s)
    options = {"decode_responses": True, "socket_connect_timeout": 5, "socket_timeout": 10, **options}
    pool: ConnectionPool
    if connections is None:
        pool = ConnectionPool.from_url(url, **options)
    else:
        pool = BlockingConnectionPool.from_url(url, max_connections=connections, timeout=5, **options)
    pool.connection_class = _CONNECTIONS[pool.connection_class]
    return Redis.from_pool(pool)


def refuses_now(error: Exception) -> bool:
    """Whether it is a server's that takes no writes at present: it or its disk is full, it is or lacks a replica."""
    told = isinstance(error, ResponseError) and re.search(r"\b(MISCONF|NOREPLICAS) ", str(error))
    return bool(told) or isinstance(error, OutOfMemoryError | ReadOnlyError)
