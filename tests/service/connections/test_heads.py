"""Bounds on request heads, trailers and chunk framing. With `SOAK=1` each client tries to send 128 MB."""

import asyncio
import os
from pathlib import Path

import pytest

from tests.service.connections.raw_http import exchange, observed, send_endlessly, status_of
from tests.service.processes import gateway_process
from tests.service.scripted import Served

SOAK = os.environ.get("SOAK") == "1"
MIB = 1 << 20
TRIED_BYTES = (128 if SOAK else 24) * MIB
KERNEL_BYTES = 16 * MIB
"""What leaves a client although the gateway does not parse it: 4 MiB that are discarded, and socket buffers."""
MAX_GROWTH_BYTES = 6 * MIB
"""Four times the growth that was measured."""
HEAD_BYTES = 65_536
CONNECTIONS = 3

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = b"POST /recaption HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "headers": (GET, b"X-Filler: " + b"y" * 54 + b"\r\n", {431}),
    "short headers": (GET, b"a:\r\n", {431}),
    "header value": (GET + b"X-Filler: ", b"y" * 64, {431}),
    "header name": (GET, b"y" * 64, {431}),
    "URL": (b"GET /", b"y" * 64, {431}),
    "method": (b"", b"\r\n" * 32, {431}),
    "trailers": (CHUNKED + b"2\r\n{}\r\n0\r\n", b"X-Filler: " + b"y" * 54 + b"\r\n", {431, 422}),
    "chunk extension": (CHUNKED + b"2;", b"y" * 64, {431}),
    "chunk size": (CHUNKED, b"0" * 64, {431, 400}),
    "requests": (b"", GET + b"\r\n", {200, 429, None}),
}


def head_of(size: int) -> bytes:
    """Return a request whose head has `size` bytes."""
    return GET + b"Connection: close\r\nX-Filler: " + b"y" * (size - len(GET) - 33) + b"\r\n\r\n"


@pytest.mark.parametrize("name", ENDLESS)
async def test_endless_heads_trailers_and_chunk_framing_cost_nothing(name: str, redis_url: str, tmp_path: Path) -> None:
    start, piece, statuses = ENDLESS[name]
    async with gateway_process(redis_url, tmp_path / "data") as (url, gateway):
        async with observed(url, gateway, "/healthz") as warm_up:
            await asyncio.sleep(0.3)
        async with observed(url, gateway, "/healthz") as observations:
            clients = (send_endlessly(url, start, piece, TRIED_BYTES) for _ in range(CONNECTIONS))
            results = await asyncio.gather(*clients)
            await asyncio.sleep(0.3)
    growth = observations.peak_bytes - warm_up.peak_bytes
    print(
        f"\n{name}: {[sent for sent, _ in results]} bytes left the clients, statuses "
        f"{[status_of(answer) for _, answer in results]}, memory grew by {growth / MIB:.1f} MiB, "
        f"slowest /healthz {1000 * max(observations.latencies_s['/healthz']):.0f} ms"
    )
    assert {status_of(answer) for _, answer in results} <= statuses
    assert growth < MAX_GROWTH_BYTES
    assert max(observations.latencies_s["/healthz"]) < 2
    if name != "requests":  # these are complete requests, which are answered
        assert max(sent for sent, _ in results) < KERNEL_BYTES


async def test_a_head_has_at_most_64_kib(gateway: Served) -> None:
    assert head_of(1000)[-4:] == b"\r\n\r\n" and len(head_of(1000)) == 1000
    assert status_of(await exchange(gateway.url, head_of(HEAD_BYTES))) == 200
    answer = await exchange(gateway.url, head_of(HEAD_BYTES + 1))
    assert status_of(answer) == 431
    assert b"application/problem+json" in answer and b'"code":"head_too_large"' in answer
    assert b"\r\nconnection: close\r\n" in answer.lower()


async def test_a_head_has_at_most_256_headers(gateway: Served) -> None:
    end = b"Connection: close\r\n\r\n"
    assert status_of(await exchange(gateway.url, GET + b"a: b\r\n" * 254 + end)) == 200
    assert status_of(await exchange(gateway.url, GET + b"a: b\r\n" * 255 + end)) == 431


async def test_trailers_do_not_become_headers(gateway: Served) -> None:
    """A trailer arrives after authentication, so it must not add a header to the request."""
    request = (
        b"POST /recaption HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"2\r\n{}\r\n0\r\nContent-Type: application/json\r\n\r\n"
    )
    with_trailer, without = await exchange(gateway.url, request), await exchange(gateway.url, request[:-34] + b"\r\n")
    assert with_trailer.partition(b"\r\n\r\n")[2] == without.partition(b"\r\n\r\n")[2]
