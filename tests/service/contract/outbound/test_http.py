"""The HTTP client: it never connects to a private address, and it survives malformed responses."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import pytest
from aiohttp.abc import ResolveResult
from yarl import URL

from service.contract.errors import UrlForbidden, UrlUnreachable
from service.contract.outbound import http
from service.contract.outbound.ssrf import is_public
from tests.hostile_server import Answer, HostileServer, endless, file, hostile_server, raw, redirect, status

PSEUDO_PUBLIC = "127.0.0.2"
"""Another address of this machine, which one test treats as public."""


@pytest.fixture
async def canary() -> AsyncIterator[HostileServer]:
    async with hostile_server() as served:
        served.answers["/"] = file(b"secret")
        yield served


class ScriptedResolver(http.Resolver):
    """Answers with the next entry of `answers`, and repeats the last one."""

    answers: tuple[str, ...] = ()

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        answer, *rest = type(self).answers
        type(self).answers = tuple(rest) or (answer,)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in answer.split()
        ]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> type[ScriptedResolver]:
    monkeypatch.setattr(http, "Resolver", ScriptedResolver)
    return ScriptedResolver


async def get(url: str, **options: frozenset[tuple[str, int]]) -> tuple[int, bytes]:
    async with asyncio.timeout(5), http.request("GET", URL(url), **options) as response:
        return response.status, b"".join([chunk async for chunk in http.read_body(response)])


PRIVATE = ["127.0.0.1", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::1"]


@pytest.mark.parametrize("address", PRIVATE)
async def test_names_of_private_addresses_are_refused(
    address: str, canary: HostileServer, resolver: type[ScriptedResolver]
) -> None:
    resolver.answers = (address, f"{address} 127.0.0.1")
    for _ in range(2):
        with pytest.raises(UrlForbidden):
            await get(f"http://rogue.test:{canary.port}/")
    with pytest.raises(UrlForbidden):
        await get(f"http://[{address}]:{canary.port}/" if ":" in address else f"http://{address}:{canary.port}/")
    assert canary.connections == 0


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f.1", "017700000001", "localhost"])
async def test_legacy_notations_of_private_addresses_are_refused(host: str, canary: HostileServer) -> None:
    with pytest.raises(UrlForbidden):
        await get(f"http://{host}:{canary.port}/")
    assert canary.connections == 0


async def test_an_allowed_host_may_have_any_address(canary: HostileServer, resolver: type[ScriptedResolver]) -> None:
    resolver.answers = ("127.0.0.1",)
    hosts = frozenset({("rogue.test", canary.port)})
    assert await get(f"http://rogue.test:{canary.port}/", hosts=hosts) == (200, b"secret")
    assert canary.connections == 1


async def test_every_connection_is_checked_anew_against_dns_rebinding(
    canary: HostileServer, resolver: type[ScriptedResolver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "is_public", lambda address: address == PSEUDO_PUBLIC or is_public(address))
    resolver.answers = (PSEUDO_PUBLIC, "127.0.0.1")
    async with hostile_server(PSEUDO_PUBLIC, canary.port) as outside:
        outside.answers["/"] = file(b"hello")
        assert await get(f"http://rogue.test:{canary.port}/") == (200, b"hello")
        with pytest.raises(UrlForbidden):
            await get(f"http://rogue.test:{canary.port}/")
    assert canary.connections == 0


async def test_a_redirect_is_returned_and_not_followed(canary: HostileServer) -> None:
    async with hostile_server() as served:
        served.answers["/"] = redirect(canary.url("/"))
        assert await get(served.url("/"), hosts=frozenset({(served.host, served.port)})) == (302, b"")
    assert canary.connections == 0


async def test_requests_use_no_proxy_no_cookies_and_minimal_headers(
    canary: HostileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    hosts = frozenset({(canary.host, canary.port)})
    canary.answers["/"] = status(200, "Set-Cookie: a=b")
    for _ in range(2):
        await get(canary.url("/"), hosts=hosts)
    sent = [line.split(b": ")[0].lower() for head, _ in canary.requests for line in head.split(b"\r\n")[1:-2]]
    assert sent == [b"host", b"accept", b"accept-encoding", b"user-agent", b"connection"] * 2
    assert b"identity" in canary.requests[0][0]


MALFORMED = [
    ("not HTTP", raw("SSH-2.0-OpenSSH_9.9\r\n\r\n")),
    ("empty", raw("")),
    ("too short", raw("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfour")),
    ("chunk too short", raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nfour")),
    ("chunk without length", raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nfour")),
    ("two lengths", raw("HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nfours")),
    ("negative length", raw("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nfour")),
    ("long header", raw("HTTP/1.1 200 OK\r\nX: " + "a" * 1_000_000 + "\r\n\r\n")),
    ("endless header", endless("HTTP/1.1 200 OK\r\nX: ", b"a" * 65_536)),
    ("endless headers", endless("HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 1000)),
]


@pytest.mark.parametrize("answer", [answer for _, answer in MALFORMED], ids=[name for name, _ in MALFORMED])
async def test_a_malformed_response_raises_a_transient_error(canary: HostileServer, answer: object) -> None:
    canary.answers["/"] = answer
    with pytest.raises(http.TransientFetchError):
        await get(canary.url("/"), hosts=frozenset({(canary.host, canary.port)}))


CHUNKED = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
EXCESSIVE = {
    "interim responses": endless("", b"HTTP/1.1 100 Continue\r\n\r\n" * 2000),
    "interim headers": endless("", b"HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n" * 2000),
    "one chunk extension": endless(f"{CHUNKED}1;", b"a" * 65_536),
    "many chunk extensions": endless(f"{CHUNKED}1", b";a=b" * 16_000),
    "an extension for each byte": endless(CHUNKED, b"1;" + b"a" * 8000 + b"\r\nx\r\n"),
}


@pytest.mark.parametrize("answer", EXCESSIVE.values(), ids=EXCESSIVE)
async def test_far_more_bytes_than_the_body_end_the_request(
    canary: HostileServer, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MAX_OVERHEAD_BYTES", 1 << 20)
    canary.answers["/"] = answer
    with pytest.raises(UrlUnreachable, match="far more bytes") as raised:
        await get(canary.url("/"), hosts=frozenset({(canary.host, canary.port)}))
    assert not isinstance(raised.value, http.TransientFetchError), "a retry would cost as much again"


async def test_a_body_in_tiny_chunks_is_received(canary: HostileServer) -> None:
    canary.answers["/"] = raw(CHUNKED, b"1\r\nx\r\n" * 200_000, b"0\r\n\r\n")
    assert await get(canary.url("/"), hosts=frozenset({(canary.host, canary.port)})) == (200, b"x" * 200_000)


async def test_bytes_beyond_the_content_length_are_ignored(canary: HostileServer) -> None:
    canary.answers["/"] = raw("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfour and more")
    body = b"four"
    with suppress(http.TransientFetchError):  # raised if all bytes arrive in one read
        _, body = await get(canary.url("/"), hosts=frozenset({(canary.host, canary.port)}))
    assert body == b"four"


async def test_bodies_are_not_decompressed(canary: HostileServer) -> None:
    canary.answers["/"] = status(200, "Content-Encoding: gzip", body=b"\x1f\x8b not really gzip")
    hosts = frozenset({(canary.host, canary.port)})
    assert await get(canary.url("/"), hosts=hosts) == (200, b"\x1f\x8b not really gzip")


@pytest.fixture
def silent_name_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: released.wait(20))
    yield
    released.set()


async def test_a_silent_name_server_does_not_block_other_threads(silent_name_server: None) -> None:
    requests = [asyncio.create_task(get("http://rogue.test/")) for _ in range(20)]
    await asyncio.sleep(0.1)
    async with asyncio.timeout(5):
        await asyncio.to_thread(int)
    for task in requests:
        task.cancel()
    assert all(isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(*requests, return_exceptions=True))


async def test_an_unknown_host_name_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(http.TransientFetchError, match="host name cannot be resolved"):
        await get("http://rogue.test/")
