"""A TCP proxy before Redis that loses one reply: the command is carried out, and whoever sent it never hears of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Proxy:
    """Loses the reply to one command, as `lose` says; `lost` tells whether it came to that."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._marker = b""
        self._left: int | None = None
        self._silent = False
        self.port = 0
        self.lost = False

    def lose(self, marker: bytes = b"", skip: int = 0, *, silent: bool = False) -> None:
        """From now on let `skip` commands with `marker` in them pass, and lose the reply to the next.

        The connection is closed then; or, if `silent`, it stays open and says nothing more.
        """
        self._marker, self._left, self._silent, self.lost = marker, skip, silent, False

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Proxy"]:
        """Listen on a free port."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        tasks = self._tasks = set[asyncio.Task[None]]()
        try:
            yield self
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        server, to_server = await asyncio.open_connection(*self._target)
        replies = asyncio.create_task(self._replies(server, to_client))
        try:
            while command := await client.read(1 << 20):
                if self._is_the_one(command):
                    replies.cancel()
                    await asyncio.gather(replies, return_exceptions=True)
                    to_server.write(command)
                    await server.read(1 << 20)  # it has been carried out
                    self.lost = True
                    if self._silent:
                        await asyncio.Event().wait()
                    return
                to_server.write(command)
        finally:
            replies.cancel()
            for writer in (to_server, to_client):
                writer.close()
            self._tasks.discard(task)

    def _is_the_one(self, command: bytes) -> bool:
        if self._left is None or self._marker not in command:
            return False
        self._left -= 1
        if self._left >= 0:
            return False
        self._left = None
        return True

    async def _replies(self, server: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while reply := await server.read(1 << 20):
                to_client.write(reply)
                await to_client.drain()
