"""A proxy in front of Redis that loses one reply: the command is executed, but its client gets no reply."""

import asyncio
from contextlib import suppress

from tests.tcp_proxy import READ_BYTES, Connection, TcpProxy


class Proxy(TcpProxy):
    """Loses the reply to the command chosen with `lose`; `lost` tells whether that has happened."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self._marker = b""
        self._skip: int | None = None
        self._silent = False
        self.lost = False

    def lose(self, marker: bytes = b"", skip: int = 0, *, silent: bool = False) -> None:
        """Let the next `skip` commands that contain `marker` pass, and lose the reply to the one after them.

        The connection is then closed, or stays open without any further data if `silent`.
        """
        self._marker, self._skip, self._silent, self.lost = marker, skip, silent, False

    async def forward(self, client: Connection, server: Connection) -> None:
        replies = asyncio.create_task(_forward_replies(server[0], client[1]))
        try:
            while command := await client[0].read(READ_BYTES):
                loses_reply = self._loses_reply_to(command)
                if loses_reply:
                    replies.cancel()
                    await asyncio.gather(replies, return_exceptions=True)
                server[1].write(command)
                if loses_reply:
                    await server[0].read(READ_BYTES)  # the reply: the command was executed
                    self.lost = True
                    if self._silent:
                        await asyncio.Event().wait()
                    return
        finally:
            replies.cancel()

    def _loses_reply_to(self, command: bytes) -> bool:
        if self._skip is None or self._marker not in command:
            return False
        self._skip -= 1
        if self._skip >= 0:
            return False
        self._skip = None
        return True


async def _forward_replies(server: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while reply := await server.read(READ_BYTES):
            to_client.write(reply)
            await to_client.drain()
