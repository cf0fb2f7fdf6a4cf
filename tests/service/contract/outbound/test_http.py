"""Asking addresses: none that is not public is connected to, whatever name it goes by and however it answers."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import pytest
from aiohttp.abc import ResolveResult
from yarl import URL

from service.contract.errors import UrlForbidden
from service.contract.outbound import http as net
from service.contract.outbound.ssrf import is_public
from tests.hostile_server import HostileServer, endless, file, hostile_server, raw, redirect, status

SECOND = "127.0.0.2"
"""Another address of this machine, which a test may take for a public one."""


@pytest.fixture
async def canary() -> AsyncIterator[HostileServer]:
    async with hostile_server() as served:
        served.answers["/"] = file(b"secret")
        yield served


class Names(net.Names):
    """Answers from a list, the last one again and again."""

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
def names(monkeypatch: pytest.MonkeyPatch) -> type[Names]:
    monkeypatch.setattr(net, "Names", Names)
    return Names


async def ask(url: str, **more: frozenset[tuple[str, int]]) -> tuple[int, bytes]:
    async with asyncio.timeout(5), net.request("GET", URL(url), **more) as answer:
        return answer.status, b"".join([chunk async for chunk in net.chunks(answer)])


INSIDE = ["127.0.0.1", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::1"]


@pytest.mark.parametrize("address", INSIDE)
async def test_a_name_that_leads_inside_is_not_followed(
    address: str, canary: HostileServer, names: type[Names]
) -> None:
    names.answers = (address, f"{address} 127.0.0.1")
    for _ in range(2):
        with pytest.raises(UrlForbidden):
            await ask(f"http://rogue.test:{canary.port}/")
    with pytest.raises(UrlForbidden):
        await ask(f"http://[{address}]:{canary.port}/" if ":" in address else f"http://{address}:{canary.port}/")
    assert canary.connections == 0


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f.1", "017700000001", "localhost"])
async def test_nor_is_an_old_spelling_of_an_address(host: str, canary: HostileServer) -> None:
    with pytest.raises(UrlForbidden):
        await ask(f"http://{host}:{canary.port}/")
    assert canary.connections == 0


async def test_a_named_host_is_asked_wherever_it_is(canary: HostileServer, names: type[Names]) -> None:
    names.answers = ("127.0.0.1",)
    hosts = frozenset({("rogue.test", canary.port)})
    assert await ask(f"http://rogue.test:{canary.port}/", hosts=hosts) == (200, b"secret")
    assert canary.connections == 1


async def test_a_name_server_that_changes_its_mind_gains_nothing(
    canary: HostileServer, names: type[Names], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(net, "is_public", lambda address: address == SECOND or is_public(address))
    names.answers = (SECOND, "127.0.0.1")
    async with hostile_server(SECOND, canary.port) as outside:
        outside.answers["/"] = file(b"hello")
        assert await ask(f"http://rogue.test:{canary.port}/") == (200, b"hello")
        with pytest.raises(UrlForbidden):
            await ask(f"http://rogue.test:{canary.port}/")
    assert canary.connections == 0


async def test_a_redirect_is_told_and_not_followed(canary: HostileServer) -> None:
    async with hostile_server() as served:
        served.answers["/"] = redirect(canary.url("/"))
        assert await ask(served.url("/"), hosts=frozenset({(served.host, served.port)})) == (302, b"")
    assert canary.connections == 0


async def test_what_is_sent_says_nothing_of_this_machine(
    canary: HostileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    hosts = frozenset({(canary.host, canary.port)})
    canary.answers["/"] = status(200, "Set-Cookie: a=b")
    for _ in range(2):
        await ask(canary.url("/"), hosts=hosts)
    told = [line.split(b": ")[0].lower() for head, _ in canary.requests for line in head.split(b"\r\n")[1:-2]]
    assert told == [b"host", b"accept", b"accept-encoding", b"user-agent", b"connection"] * 2
    assert b"identity" in canary.requests[0][0]


BROKEN = [
    ("no HTTP", raw("SSH-2.0-OpenSSH_9.9\r\n\r\n")),
    ("nothing", raw("")),
    ("too short", raw("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfour")),
    ("chunk too short", raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nfour")),
    ("chunk of no length", raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nfour")),
    ("two lengths", raw("HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nfours")),
    ("negative length", raw("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nfour")),
    ("long header", raw("HTTP/1.1 200 OK\r\nX: " + "a" * 1_000_000 + "\r\n\r\n")),
    ("endless header", endless("HTTP/1.1 200 OK\r\nX: ", b"a" * 65_536)),
    ("endless headers", endless("HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 1000)),
]


@pytest.mark.parametrize("answer", [answer for _, answer in BROKEN], ids=[name for name, _ in BROKEN])
async def test_a_broken_answer_is_an_error_and_no_body(canary: HostileServer, answer: object) -> None:
    canary.answers["/"] = answer
    with pytest.raises(net.TransientFetchError):
        await ask(canary.url("/"), hosts=frozenset({(canary.host, canary.port)}))


async def test_bytes_beyond_the_length_are_not_the_bodys(canary: HostileServer) -> None:
    canary.answers["/"] = raw("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfour and more")
    body = b"four"
    with suppress(net.TransientFetchError):  # where both come at once the answer is none
        _, body = await ask(canary.url("/"), hosts=frozenset({(canary.host, canary.port)}))
    assert body == b"four"


async def test_nothing_is_unpacked(canary: HostileServer) -> None:
    canary.answers["/"] = status(200, "Content-Encoding: gzip", body=b"\x1f\x8b and no gzip")
    hosts = frozenset({(canary.host, canary.port)})
    assert await ask(canary.url("/"), hosts=hosts) == (200, b"\x1f\x8b and no gzip")


@pytest.fixture
def silent_name_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: answered.wait(20))
    yield
    answered.set()


async def test_a_silent_name_server_holds_up_nobody_else(silent_name_server: None) -> None:
    waiting = [asyncio.create_task(ask("http://rogue.test/")) for _ in range(20)]
    await asyncio.sleep(0.1)
    async with asyncio.timeout(5):
        await asyncio.to_thread(int)
    for task in waiting:
        task.cancel()
    assert all(isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(*waiting, return_exceptions=True))


async def test_an_unknown_name_is_told_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(net.TransientFetchError, match="host name is not known"):
        await ask("http://rogue.test/")
