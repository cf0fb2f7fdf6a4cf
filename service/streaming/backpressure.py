"""Backpressure: limits how much unsent data a slow client can accumulate in this process and in the kernel.

The response generator pauses until the kernel accepts its data, and the kernel buffers at most `UNSENT_BYTES` more
than the client's receive window. The kernel closes the connection of a client that stops reading or disappears.
"""

import asyncio
import socket

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

UNSENT_BYTES = 16_384


def bounded(unread_s: float) -> type[HttpToolsProtocol]:
    """Return a uvicorn protocol class that drops a client after it leaves sent data unread for `unread_s` seconds."""

    class Bounded(HttpToolsProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            transport.set_write_buffer_limits(high=0)
            connection = transport.get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(unread_s * 1000))

    return Bounded
