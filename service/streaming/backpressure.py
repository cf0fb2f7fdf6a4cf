"""What one client's connection may take: little memory, and no more of it where the client does not read.

An answer waits in this process only until the kernel takes it, and the kernel takes no more than `UNSENT_BYTES` ahead
of what the client has room for. A client that takes nothing, or is gone without a word, is cut off by the kernel.
"""

import asyncio
import socket

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

UNSENT_BYTES = 16_384


def bounded(unread_s: float) -> type[HttpToolsProtocol]:
    """Return uvicorn's protocol, cutting off clients that leave what was sent to them unread for `unread_s`."""

    class Bounded(HttpToolsProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            transport.set_write_buffer_limits(high=0)
            connected = transport.get_extra_info("socket")
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(unread_s * 1000))

    return Bounded
