"""HTTP to addresses that clients name, for the worker's fetching and the gateway's webhooks: nothing else goes out.

Each address is judged as it is connected to, so whatever a name server says, and whenever it changes its mind, no
socket is opened to a network that is not public. Redirects are the caller's; nothing is unpacked; cookies, proxies and
the environment are left out of it. Importing this takes 0.2 s of processor time, for aiohttp: the gateway does so only
where it has webhooks.
"""

import asyncio
import errno
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from service.contract.errors import UrlForbidden, UrlUnreachable
from service.contract.outbound.ssrf import HostAndPort, is_named, is_public

CONNECT_S = 10.0
READ_BYTES = 1 << 19
"""How much of a body waits in memory until it is taken; up to twice as much comes in at once."""
HEADERS = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "sharecap"}


class TransientFetchError(UrlUnreachable):
    """The address gave nothing this time; it may the next."""


class Names(AbstractResolver):
    """The system's resolver, in a thread for each question.

    A name server that does not answer holds the thread for half a minute: nobody waits for it, not even at the
    process's end.
    """

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[Any]] = loop.create_future()

        def tell(infos: list[Any], error: OSError | None) -> None:
            if found.done():
                return
            if error is None:
                found.set_result(infos)
            else:
                found.set_exception(error)

        def look_up() -> None:
            infos: list[Any] = []
            error: OSError | None = None
            try:
                infos = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG)
            except (OSError, UnicodeError) as met:
                error = met if isinstance(met, OSError) else socket.gaierror(socket.EAI_NONAME, str(met))
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(tell, infos, error)

        threading.Thread(target=look_up, name="names", daemon=True).start()
        return [
            ResolveResult(
                hostname=host,
                host=address[0],
                port=port,
                family=kind,
                proto=proto,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, proto, _, address in await found
        ]

    async def close(self) -> None:
        pass


@asynccontextmanager
async def request(
    method: str,
    url: URL,
    hosts: frozenset[HostAndPort] = frozenset(),
    *,
    data: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Give the answer's head; its body is read by `chunks`. `url` was `urls.checked` with the same `hosts`.

    Raises UrlForbidden where the address turns out not to be public, TransientFetchError where there is no answer.
    There is no time limit but `CONNECT_S`: the caller has its own.
    """
    named = is_named(url, hosts)
    refused: list[str] = []

    def open_socket(info: tuple[Any, ...]) -> socket.socket:
        family, kind, proto, _, address = info
        if not (named or is_public(address[0])):
            refused.append(address[0])
            raise OSError(errno.EACCES, "not public")
        return socket.socket(family, kind, proto)

    connector = aiohttp.TCPConnector(
        socket_factory=open_socket, resolver=Names(), use_dns_cache=False, force_close=True
    )
    async with aiohttp.ClientSession(
        connector=connector,
        headers=HEADERS,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
        read_bufsize=READ_BYTES,
        auto_decompress=False,
        trust_env=False,
    ) as session:
        with _told(refused):
            answer = await session.request(method, url, data=data, headers=headers, allow_redirects=False)
        async with answer:
            yield answer


async def chunks(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield the body as it comes. Raises TransientFetchError where it breaks off, or is not as long as was said."""
    while True:
        with _told([]):
            chunk = await answer.content.readany()
        if not chunk:
            return
        yield chunk


@contextmanager
def _told(refused: list[str]) -> Iterator[None]:
    """Turn what aiohttp meets into what a client is told."""
    try:
        yield
    except aiohttp.InvalidURL:
        raise UrlForbidden("This is no address.") from None
    except (aiohttp.ClientError, OSError) as error:
        if refused:
            raise UrlForbidden("The address does not lie on the public internet.") from None
        raise TransientFetchError(_reason(error)) from error


def _reason(error: Exception) -> str:
    match error:
        case aiohttp.ClientConnectorDNSError():
            return "The address's host name is not known."
        case aiohttp.ClientSSLError():
            return "No secure connection could be made to the address."
        case aiohttp.ClientConnectorError() | TimeoutError():
            return "Nothing answers at the address."
        case aiohttp.ClientResponseError():
            return "The address does not answer in proper HTTP."
        case _:
            return "The connection broke off before the end."
