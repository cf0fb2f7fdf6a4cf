"""A TCP proxy in front of Redis that loses one reply: the command is executed, but its client gets no reply."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Proxy:
    """Loses the reply to the command chosen with `lose`; `lost` tells whether that has happened."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._marker = b""
        self._skip: int | None = None
        self._silent = False
        self.port = 0
        self.lost = False

    def lose(self, marker: bytes = b"", skip: int = 0, *, silent: bool = False) -> None:
        """Let the next `skip` commands that contain `marker` pass, and lose the reply to the one after them.

        The connection is then closed, or stays open without any further data if `silent`.
        """
        self._marker, self._skip, self._silent, self.lost = marker, skip, silent, False

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Proxy"]:
        """Run the proxy on a free port."""
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
        replies = asyncio.create_task(self._forward_replies(server, to_client))
        try:
            while command := await client.read(1 << 20):
                if self._loses_reply_to(command):
                    replies.cancel()
                    await asyncio.gather(replies, return_exceptions=True)
                    to_server.write(command)
                    await server.read(1 << 20)  # the reply: the command was executed
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

    def _loses_reply_to(self, command: bytes) -> bool:
        if self._skip is None or self._marker not in command:
            return False
        self._skip -= 1
        if self._skip >= 0:
            return False
        self._skip = None
        return True

    async def _forward_replies(self, server: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while reply := await server.read(1 << 20):
                to_client.write(reply)
                await to_client.drain()
