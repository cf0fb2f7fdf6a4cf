"""The HTTP client for URLs that clients name: the worker fetches videos with it, the gateway delivers webhooks.

It never connects to a private network, even if DNS answers change between check and connection. It breaks the
connection of a server that sends far more bytes than belong to the body, such as endless interim responses or chunk
extensions. It does not follow redirects, does not decompress bodies, and ignores cookies, proxies and the environment.
Importing this module takes 0.2 s of CPU time, for aiohttp; the gateway imports it only if webhooks are enabled.
"""

import asyncio
import errno
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from service.contract.errors import UrlForbidden, UrlUnreachable
from service.contract.outbound.ssrf import HostAndPort, is_allowed_host, is_public

CONNECT_S = 10.0
READ_BYTES = 1 << 19
"""How much of a body aiohttp buffers until it is read; up to twice as much may arrive at once."""
MAX_OVERHEAD_BYTES = 4 << 20
MAX_OVERHEAD_RATIO = 2
"""A server may send this many bytes, and this many per byte of the body, that do not belong to the body. TLS records,
headers and usual chunks need less than a hundredth of it."""
HEADERS = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "sharecap"}


class TransientFetchError(UrlUnreachable):
    """The request failed, and a retry may succeed."""


class Resolver(AbstractResolver):
    """Resolves names with the system's resolver, each query in a daemon thread of its own.

    A name server that does not answer blocks its thread for half a minute. Nothing waits for that thread, not even the
    end of the process.
    """

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of `host`. Raises OSError."""
        return [
            ResolveResult(
                hostname=host,
                host=address[0],
                port=port,
                family=address_family,
                proto=proto,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address_family, _, proto, _, address in await _getaddrinfo(host, port, family)
        ]

    async def close(self) -> None:
        pass


async def _getaddrinfo(host: str, port: int, family: socket.AddressFamily) -> list[Any]:
    loop = asyncio.get_running_loop()
    result: asyncio.Future[list[Any]] = loop.create_future()

    def finish(addresses: list[Any], error: OSError | None) -> None:
        if result.done():  # the caller was cancelled
            return
        if error is None:
            result.set_result(addresses)
        else:
            result.set_exception(error)

    def look_up() -> None:
        addresses: list[Any] = []
        failure: OSError | None = None
        try:
            addresses = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG)
        except OSError as error:
            failure = error
        except UnicodeError as error:  # the name cannot be encoded
            failure = socket.gaierror(socket.EAI_NONAME, str(error))
        with suppress(RuntimeError):  # the event loop is closed
            loop.call_soon_threadsafe(finish, addresses, failure)

    threading.Thread(target=look_up, name="resolver", daemon=True).start()
    return await result


@dataclass
class _Traffic:
    """What happened on the connections of one request: refused addresses, received bytes, and the body so far."""

    refused: bool = False
    received: int = 0
    body: aiohttp.StreamReader | None = None

    @property
    def excessive(self) -> bool:
        """Whether the server has sent far more bytes than belong to the body."""
        body_bytes = self.body.total_bytes if self.body is not None else 0
        return self.received > MAX_OVERHEAD_BYTES + (1 + MAX_OVERHEAD_RATIO) * body_bytes


class _MeteredSocket(socket.socket):
    """Counts received bytes and breaks the connection when they are excessive.

    asyncio's event loop receives with these two methods. uvloop, in the gateway, does not: there, the webhooks' time
    limit is the only bound.
    """

    traffic: _Traffic

    def recv(self, *args: Any) -> bytes:
        data = super().recv(*args)
        self._count(len(data))
        return data

    def recv_into(self, *args: Any) -> int:
        count = super().recv_into(*args)
        self._count(count)
        return count

    def _count(self, received: int) -> None:
        self.traffic.received += received
        if self.traffic.excessive:
            raise ConnectionAbortedError(errno.ECONNABORTED, "too many bytes besides the body")


@asynccontextmanager
async def request(
    method: str,
    url: URL,
    hosts: frozenset[HostAndPort] = frozenset(),
    *,
    data: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Send a request and yield the response once its headers have arrived; `read_body` reads the body.

    `url` must come from `ssrf.check_url` with the same `hosts`. Raises UrlForbidden if the host's address is not
    public, TransientFetchError if no response arrives, and UrlUnreachable, also in the block, if the server sends far
    more than the body. The only time limit is `CONNECT_S`: callers set their own.
    """
    traffic = _Traffic()
    async with aiohttp.ClientSession(
        connector=_connector(is_allowed_host(url, hosts), traffic),
        headers=HEADERS,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
        read_bufsize=READ_BYTES,
        auto_decompress=False,
        trust_env=False,
    ) as session:
        with _convert_errors(traffic):
            response = await session.request(method, url, data=data, headers=headers, allow_redirects=False)
        traffic.body = response.content
        async with response:
            try:
                yield response
            except TransientFetchError:
                if traffic.excessive:
                    raise _too_much() from None
                raise


def _connector(any_address: bool, traffic: _Traffic) -> aiohttp.TCPConnector:
    """Return a connector that opens sockets to public addresses only, and meters what they receive."""

    def open_socket(info: tuple[Any, ...]) -> socket.socket:
        family, kind, proto, _, address = info
        if not (any_address or is_public(address[0])):
            traffic.refused = True
            raise OSError(errno.EACCES, "not public")
        opened = _MeteredSocket(family, kind, proto)
        opened.traffic = traffic
        return opened

    return aiohttp.TCPConnector(socket_factory=open_socket, resolver=Resolver(), use_dns_cache=False, force_close=True)


async def read_body(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield the body in chunks as it arrives. Raises TransientFetchError if the body ends early."""
    while True:
        with _convert_errors(_Traffic()):
            chunk = await response.content.readany()
        if not chunk:
            return
        yield chunk


@contextmanager
def _convert_errors(traffic: _Traffic) -> Iterator[None]:
    """Raise this service's errors instead of aiohttp's."""
    try:
        yield
    except aiohttp.InvalidURL:
        raise UrlForbidden("This is not a valid URL.") from None
    except (aiohttp.ClientError, OSError) as error:
        if traffic.refused:
            raise UrlForbidden("The URL does not lead to the public internet.") from None
        if traffic.excessive:
            raise _too_much() from None
        raise TransientFetchError(_reason(error)) from error


def _too_much() -> UrlUnreachable:
    return UrlUnreachable("The server sent far more bytes than the file has.")


def _reason(error: Exception) -> str:
    match error:
        case aiohttp.ClientConnectorDNSError():
            return "The URL's host name cannot be resolved."
        case aiohttp.ClientSSLError():
            return "The TLS connection to the URL's host failed."
        case aiohttp.ClientConnectorError() | TimeoutError():
            return "The URL's host does not accept connections."
        case aiohttp.ClientResponseError():
            return "The URL's host does not answer with valid HTTP."
        case _:
            return "The connection broke before the end of the response."
