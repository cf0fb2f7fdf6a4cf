"""A TCP proxy for tests of unreliable networks: subclasses decide what of each connection passes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Self

READ_BYTES = 1 << 20

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class TcpProxy:
    """Listens on a free port, and connects each client to `host`:`port`. `port`: the proxy's own port."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._tasks = set[asyncio.Task[None]]()
        self.port = 0

    async def forward(self, client: Connection, server: Connection) -> None:
        """Forward one connection; both sides are closed when this returns."""
        raise NotImplementedError

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Run the proxy; every connection is closed at the end."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        server = await asyncio.open_connection(*self._target)
        try:
            with suppress(ConnectionError, asyncio.CancelledError):  # cancelled when `running` ends
                await self.forward((reader, writer), server)
        finally:
            writer.close()
            server[1].close()
            self._tasks.discard(task)
