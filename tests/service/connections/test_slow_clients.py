"""Time limits on heads, bodies, responses and idle connections; the bounds on connections, over real sockets.

With `SOAK=1` the flood has 2,000 slow connections and the default time limits.
"""

import asyncio
import json
import os
import socket
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from tests.service.connections.raw_http import connection, observed, read_to_end, status_of
from tests.service.processes import environment, gateway_process
from tests.service.scripted import Serve

SOAK = os.environ.get("SOAK") == "1"
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
POST = (
    b"POST /recaption HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
)


async def closed_after(url: str, start: bytes, drip: bytes, every_s: float = 0.1) -> tuple[float, bytes]:
    """Send `start`, then `drip` at intervals. Returns the seconds until the gateway ends the connection, and all data
    it sent."""
    began = time.monotonic()
    async with connection(url) as (reader, writer):
        writer.write(start)
        answer = asyncio.create_task(read_to_end(reader))
        while not answer.done():
            if drip:
                writer.write(drip)
            await asyncio.sleep(every_s)
        return time.monotonic() - began, await answer


async def test_a_head_must_be_complete_in_time(serve: Serve) -> None:
    async with serve(head_timeout_s=1.0) as gateway:
        results = await asyncio.gather(
            closed_after(gateway.url, b"", b""),
            closed_after(gateway.url, GET, b"a: b\r\n"),
            closed_after(gateway.url, b"", b"\r\n"),
            closed_after(gateway.url, GET + b"\r\n" + GET, b"a: b\r\n"),
        )
    assert [status_of(answer) for _, answer in results] == [None, 408, 408, 200]
    assert results[1][1].count(b'"code":"request_timeout"') == 1 and results[3][1].endswith(b'"retryable":true}')
    assert all(0.8 < seconds < 4 for seconds, _ in results), results


async def test_an_idle_connection_is_closed(serve: Serve) -> None:
    async with serve(idle_timeout_s=1, head_timeout_s=20) as gateway:
        seconds, answer = await closed_after(gateway.url, GET + b"\r\n", b"")
    assert status_of(answer) == 200 and 0.8 < seconds < 4


async def test_a_body_must_arrive_at_the_least_rate(serve: Serve) -> None:
    async with serve(min_bytes_per_s=1000, rate_window_s=1.0) as gateway:
        slow, stopped, fast = await asyncio.gather(
            closed_after(gateway.url, POST, b"y" * 20),
            closed_after(gateway.url, POST, b""),
            closed_after(gateway.url, POST, b"y" * 4000),
        )
    assert [status_of(answer) for _, answer in (slow, stopped, fast)] == [408, 408, 422]
    assert 0.8 < slow[0] < 4 and 0.8 < stopped[0] < 4


async def test_time_in_which_the_gateway_does_not_read_does_not_count(serve: Serve) -> None:
    """The application waits for Redis before it reads the body; meanwhile the client cannot send."""
    async with serve(
        redis_url="redis://127.0.0.1:1/0", redis_patience_s=1.5, min_bytes_per_s=100_000, rate_window_s=0.5
    ) as gateway:
        body = b"y" * 2_000_000
        head = b"POST /captions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
        async with connection(gateway.url) as (reader, writer):
            writer.write(head + body)
            assert status_of(await read_to_end(reader)) == 503


async def test_a_client_must_read_its_response_at_the_least_rate(serve: Serve) -> None:
    """A client that reads a little now and then is disconnected, although it never stops for long."""
    async with serve(min_bytes_per_s=10_000, rate_window_s=1.0, unread_s=60) as gateway:
        host, port = gateway.url.removeprefix("http://").split(":")
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            slow.connect((host, int(port)))
            slow.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 8)
            slow.setblocking(False)
            async with asyncio.timeout(15):
                while b'closed_total{reason="slow_reader"} 1.0' not in (await gateway.client.get("/metrics")).content:
                    await asyncio.get_running_loop().sock_recv(slow, 100)
                    await asyncio.sleep(0.2)


async def test_requests_behind_a_trusted_proxy_count_for_the_forwarded_address(serve: Serve) -> None:
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(
            serve(trusted_proxies="127.0.0.1", max_connections_per_address=2, heartbeat_s=0.2)
        )
        url = await _create_stream(gateway.client)
        headers = {"X-Forwarded-For": "192.0.2.1"}
        for _ in range(2):
            stream = await stack.enter_async_context(gateway.client.stream("GET", url, headers=headers))
            assert stream.status_code == 200
        refused = await gateway.client.get("/healthz", headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert (await gateway.client.get("/healthz", headers={"X-Forwarded-For": "192.0.2.2"})).status_code == 200
        assert (await gateway.client.get("/healthz")).status_code == 200


async def _create_stream(client: httpx.AsyncClient) -> str:
    job = (await client.post("/recaption", json={"prompt": "A fox"}, headers={"Prefer": "wait=0"})).json()
    return str(job["links"]["events"])


# -- a flood of slow connections beside normal use

SLOW, PER_S, OPEN_FILES, HEAD_TIMEOUT_S = (2000, 500, (1024, None), 10.0) if SOAK else (300, 200, (256,), 3.0)
P99_MS = 200 if SOAK else 1000


async def flood(url: str) -> list[float]:
    """Run the flood program. Returns how long each connection stayed open."""
    command = (sys.executable, "-m", "tests.service.connections.flood", url, str(SLOW), str(PER_S))
    program = await asyncio.create_subprocess_exec(*command, env=environment(), stdout=asyncio.subprocess.PIPE)
    output, _ = await program.communicate()
    return [seconds for seconds in json.loads(output) if seconds is not None]


@pytest.mark.parametrize("open_files", OPEN_FILES)
async def test_slow_connections_do_not_disturb_normal_use(
    open_files: int | None, redis_url: str, tmp_path: Path
) -> None:
    settings = {"head_timeout_s": HEAD_TIMEOUT_S, "rate_window_s": HEAD_TIMEOUT_S}
    paths = ("/captions", "/healthz")
    async with (
        gateway_process(redis_url, tmp_path / "data", open_files=open_files, **settings) as (url, gateway),
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
        client.stream("GET", events := await _create_stream(client)) as stream,
    ):
        async with observed(url, gateway, *paths, pause_s=0.02) as before:
            await asyncio.sleep(1)
        async with observed(url, gateway, *paths, pause_s=0.02) as during:
            durations = await flood(url)
        (await client.delete(events.removesuffix("/events"))).raise_for_status()
        async for _ in stream.aiter_raw():  # ends without an error, so the connection was never cut
            pass
    p99_ms = {path: (before.p99_ms(path), during.p99_ms(path)) for path in paths}
    print(
        f"\n{SLOW} slow connections, {open_files or 'unlimited'} files: {len(durations)} were accepted, the last one "
        f"was closed after {max(durations):.1f} s; p99 before and during the flood in ms: "
        + ", ".join(f"{path} {idle:.0f} and {busy:.0f}" for path, (idle, busy) in p99_ms.items())
        + f" over {len(during.latencies_s['/captions'])} requests; at most {during.peak_descriptors} open files"
    )
    assert len(durations) > 0.9 * SLOW
    assert max(durations) < HEAD_TIMEOUT_S + 5
    assert all(busy_ms < P99_MS for _, busy_ms in p99_ms.values())
    assert open_files is None or during.peak_descriptors < open_files
