"""The HTTP protocol of the gateway: uvicorn's httptools protocol, with bounds on what a client can cost.

- Size: at most `HEAD_BYTES` between two steps of progress. Progress is a complete head, a part of a body, or a complete
  request, so this bounds heads, trailers and the framing of chunks. A head has at most `MAX_HEADERS` headers.
- Time: a head is complete within `HEAD_TIMEOUT_S`, and bodies move at a least rate in both directions. Time in which
  the gateway itself does not read does not count. An idle connection is closed by uvicorn after `IDLE_TIMEOUT_S`.
- Backpressure: the kernel buffers at most `UNSENT_BYTES` more than the client's receive window, and the application
  pauses until the kernel accepts its data.
- Early answers: a request that is answered before its body has arrived, such as an upload with a wrong key, ends its
  connection instead of being read to the end.

`table.py` decides which connections are open at all. Why httptools: docs/decisions/0020-httptools-with-bounds.md.
"""

import asyncio
import socket
from http import HTTPStatus
from typing import Any

from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from service.connections.addresses import client_of, forwarded_client, is_trusted
from service.connections.rate import LeastRate
from service.connections.table import ConnectionTable
from service.contract.errors import HeadTooLarge, RateLimited, RequestError, RequestTimeout
from service.problems import error_response
from service.settings import Settings

HEAD_BYTES = 65_536
MAX_HEADERS = 256
MAX_PIPELINED = 8
"""How many requests may wait on one connection until the one before them is answered."""
UNSENT_BYTES = 16_384
LINGER_S = 2.0
"""After its last answer, a connection with an unread body is kept this long, so that the client can read the answer."""
LINGER_BYTES = 4 << 20
"""How much of the unread body is read and discarded in that time."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        settings: Settings,
        table: ConnectionTable,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._settings, self._table = settings, table
        self._behind_proxy = False
        self._unparsed = 0
        """Bytes received since the last progress."""
        self._in_head = True
        self._head_since: float | None = self.loop.time()
        self._early_answer = False
        self._lingering: int | None = None
        """Bytes discarded after the last answer; None before it."""
        self._refusal: RequestError | None = None
        self._receiving = LeastRate(settings.min_bytes_per_s, settings.rate_window_s)
        self._sending = LeastRate(settings.min_bytes_per_s, settings.rate_window_s)
        self._received = 0

    # -- connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._settings.unread_s * 1000))
        address = self.client[0] if self.client else ""
        self._behind_proxy = is_trusted(address, self._settings.trusted_proxies)
        if not self._table.admit(self, None if self._behind_proxy else client_of(address)):
            self.drop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._table.remove(self)
        super().connection_lost(exc)

    def drop(self) -> None:
        """Close the connection at once, without an answer."""
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._lingering is not None:
            self._discard(len(data))
            return
        if self._head_since is None and not self._in_progress:
            self._head_since = self.loop.time()
        rest = memoryview(data)
        while rest and not self.transport.is_closing() and self._lingering is None:
            part, rest = rest[: HEAD_BYTES - self._unparsed], rest[HEAD_BYTES - self._unparsed :]
            self._unparsed += len(part)
            super().data_received(part)  # type: ignore[arg-type]
            if self._unparsed >= HEAD_BYTES and self._lingering is None:
                self._refuse(HeadTooLarge(f"A request head may have {HEAD_BYTES} bytes and {MAX_HEADERS} headers."))

    # -- callbacks of the parser. What they raise ends the parsing, and `send_400_response` is called.

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head_since = self._head_since or self.loop.time()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer: it came after authentication, so it must not change the request
        if len(self.headers) >= MAX_HEADERS:
            raise self._refused(HeadTooLarge(f"A request may have {MAX_HEADERS} headers."))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head, self._head_since, self._unparsed = False, None, 0
        if len(self.pipeline) >= MAX_PIPELINED:
            raise self._refused(RateLimited(f"At most {MAX_PIPELINED} requests may wait on one connection."))
        if self._behind_proxy:
            client = forwarded_client(self.headers, self._settings.trusted_proxies)
            if not self._table.reassign(self, client):
                raise self._refused(RateLimited("This address has too many requests in progress."))
        self._table.set_busy(self)
        self._receiving.restart(self.loop.time(), self._received)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        self._received += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unparsed = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer a request that cannot be parsed, or that a callback has refused."""
        if self._refusal is not None:
            self._refuse(self._refusal)
        elif self._response_started:
            self.drop()
        else:
            super().send_400_response(msg)

    # -- answers

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        async def closing_after_early_answer(
            scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
        ) -> None:
            async def send_marked(message: ASGISendEvent) -> None:
                if message["type"] != "http.response.start" or not cycle.more_body:
                    await send(message)
                    return
                self._early_answer = True
                cycle.keep_alive = False  # uvicorn adds `Connection: close` …
                await send(message)
                cycle.keep_alive = True  # … and does not close before the client has read the answer

            await app(scope, receive, send_marked)

        super()._start_asgi_task(cycle, closing_after_early_answer)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._early_answer and not self.transport.is_closing():
            self._linger()
        elif not self._in_progress:
            self._table.set_idle(self)
            if self._behind_proxy:
                self._table.reassign(self, None)

    def _refuse(self, error: RequestError) -> None:
        """Answer with `error` and close the connection."""
        self._table.count_closed(error.code)
        if self._response_started:
            self.drop()
            return
        if self._in_progress:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write(_response_bytes(error))
        self._linger()

    def _linger(self) -> None:
        """End the connection after its last answer: send no more, discard what arrives, and close soon.

        If a socket is closed while received data is unread, the kernel resets the connection, and the client may lose
        the answer.
        """
        self._lingering = 0
        self._unset_keepalive_if_required()
        self._table.set_idle(self)
        self.flow.resume_reading()
        self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.abort)

    def _discard(self, size: int) -> None:
        self._lingering = (self._lingering or 0) + size
        if self._lingering > LINGER_BYTES:
            self.flow.pause_reading()

    def _refused(self, error: RequestError) -> RequestError:
        """Note the error with which the request is refused, and return it."""
        self._refusal = error
        return error

    # -- time limits

    def pause_writing(self) -> None:
        super().pause_writing()
        self._sending.restart(self.loop.time(), -self.transport.get_write_buffer_size())

    def check(self, now: float) -> None:
        """Close the connection if its client is too slow. Called about twice a second."""
        if self.transport.is_closing() or self._lingering is not None:
            return
        if self.flow.write_paused and not self._sending.holds(now, -self.transport.get_write_buffer_size()):
            self._table.count_closed("slow_reader")
            self.drop()
        elif self.flow.read_paused:
            self._head_since = self._head_since and now
            self._receiving.restart(now, self._received)
        elif self._head_since is not None:
            if now - self._head_since > self._settings.head_timeout_s:
                self._time_out("The request head did not arrive in time.")
        elif not self._awaits_body:
            self._receiving.restart(now, self._received)
        elif not self._receiving.holds(now, self._received):
            self._time_out("The request body arrives too slowly.")

    def _time_out(self, detail: str) -> None:
        if self._in_progress or self._unparsed:
            self._refuse(RequestTimeout(detail))
        else:  # nothing was requested, so nothing is answered
            self._table.count_closed(RequestTimeout.code)
            self.drop()

    @property
    def _in_progress(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _response_started(self) -> bool:
        return self._in_progress and self.cycle.response_started

    @property
    def _awaits_body(self) -> bool:
        """Whether the client should be sending a body now."""
        return self._in_progress and self.cycle.more_body and not self.cycle.waiting_for_100_continue


def _response_bytes(error: RequestError) -> bytes:
    """Return the whole response for an error that is answered without the application."""
    response = error_response(error)
    headers = [*response.raw_headers, (b"connection", b"close")]
    lines = [f"HTTP/1.1 {response.status_code} {HTTPStatus(response.status_code).phrase}".encode()]
    lines += [name + b": " + value for name, value in headers]
    return b"\r\n".join([*lines, b"", bytes(response.body)])
