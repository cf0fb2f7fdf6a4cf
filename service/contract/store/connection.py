"""Asynchronous connections to Redis, as every process of the service opens them.

redis-py sends with `asyncio.wait_for`. On Python 3.11 this swallows a cancellation that arrives just as the send
completes (cpython issue 86296, fixed in 3.12), and the cancelled task continues. The connections here send within
`asyncio.timeout` instead, which does not have this fault.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

from redis.asyncio import BlockingConnectionPool, Connection, ConnectionPool, Redis, SSLConnection
from redis.asyncio import UnixDomainSocketConnection as UnixConnection
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.contract.store.retry import AsyncRetryFor

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 10.0
POOL_TIMEOUT_S = 5.0


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
    """Return a client that decodes responses to `str`. Raises ValueError if `url` is not a Redis URL.

    `connections` limits the pool; a caller that finds all of them busy waits up to `POOL_TIMEOUT_S`. A failed command
    is retried for `patience_s`; without it, redis-py's default applies. `options` are passed to redis-py.
    """
    if patience_s is not None:
        options["retry"] = AsyncRetryFor(patience_s)
    timeouts = {"socket_connect_timeout": CONNECT_TIMEOUT_S, "socket_timeout": ANSWER_TIMEOUT_S}
    options = {"decode_responses": True, **timeouts, **options}
    pool: ConnectionPool
    if connections is None:
        pool = ConnectionPool.from_url(url, **options)
    else:
        pool = BlockingConnectionPool.from_url(url, max_connections=connections, timeout=POOL_TIMEOUT_S, **options)
    pool.connection_class = _CONNECTIONS[pool.connection_class]
    return Redis.from_pool(pool)
