"""Connections to Redis as every process here makes them.

redis-py sends by `asyncio.wait_for`, which on Python 3.11 swallows a cancellation that comes as the sending ends
(cpython issue 86296, mended in 3.12): a task asked to end would go on for ever. Here the time limit of sending is an
`asyncio.timeout`, which loses none.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

from redis.asyncio import BlockingConnectionPool, Connection, ConnectionPool, Redis, SSLConnection
from redis.asyncio import UnixDomainSocketConnection as UnixConnection
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import TimeoutError as RedisTimeoutError


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


def connect(url: str, connections: int | None = None, **options: Any) -> Redis:
    """Return a client that decodes answers to `str`. With `connections`, whoever finds them all busy waits for one.

    `options` are redis-py's. Raises ValueError for a URL that is none of Redis.
    """
    options = {"decode_responses": True, "socket_connect_timeout": 5, "socket_timeout": 10, **options}
    pool: ConnectionPool
    if connections is None:
        pool = ConnectionPool.from_url(url, **options)
    else:
        pool = BlockingConnectionPool.from_url(url, max_connections=connections, timeout=5, **options)
    pool.connection_class = _CONNECTIONS[pool.connection_class]
    return Redis.from_pool(pool)
