"""Event streams under load, over real connections to a gateway in a separate process.

With `SOAK=1` the tests run at full size: 1,000 cut connections, and 500 clients of which 50 never read.
"""

import asyncio
import os
import random
import re
import socket
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import h11
import httpx
import psutil
import pytest

from service.contract.events import Caption, Completed, Delta, Started
from service.contract.jobs import Timings, Usage
from service.contract.store.entries import Entry
from service.contract.store.leases import RENEW_EVERY_S, Fenced, Lease
from service.contract.store.store import Store
from service.streaming import sse
from tests.service.processes import gateway_process
from tests.service.scripted import ScriptedWorker, eventually

SOAK = os.environ.get("SOAK") == "1"
TEXTS = ("Das Quadrat fährt — ", "正方形が右へ動く。", "🟨🟦👩‍👩‍👧", "plain words ", "\n\nid: 9\ndata: ")


async def create_job(url: str) -> str:
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
        answer = await client.post("/recaption", json={"prompt": "A fox"}, headers={"Prefer": "wait=0"})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])


@asynccontextmanager
async def renewed(store: Store, leases: list[Lease]) -> AsyncIterator[None]:
    """Renew the leases in the background so that they do not expire."""

    async def renew() -> None:
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            for lease in leases:
                with suppress(Fenced):
                    await store.renew(lease)

    renewing = asyncio.create_task(renew())
    try:
        yield
    finally:
        renewing.cancel()


def request(job_id: str, after: int | None = None) -> bytes:
    header = "" if after is None else f"Last-Event-ID: {after}\r\n"
    return f"GET /captions/{job_id}/events HTTP/1.1\r\nHost: localhost\r\n{header}\r\n".encode()


def body_of(received: bytes) -> bytes:
    """Return the part of the response body that is contained in the first bytes of a connection."""
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    parser.send(h11.EndOfMessage())
    parser.receive_data(received)
    body = b""
    while (event := parser.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
        if isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            break
    return body


def complete_frames(body: bytes) -> bytes:
    """Return the complete events of a body, without comments, `retry` and a truncated last event."""
    parts = body.split(b"\n\n")[:-1]
    return b"".join(part + b"\n\n" for part in parts if part.startswith(b"id: "))


@dataclass
class Writer:
    """Appends deltas with all kinds of text to a job; completes the job once `stop` is set."""

    worker: ScriptedWorker
    lease: Lease
    random: random.Random
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        await self.worker.append(self.lease, Started(attempt=1))
        while not self.stop.is_set():
            text = "".join(self.random.choices(TEXTS, k=self.random.randint(0, 12)))
            await self.worker.append(self.lease, Delta(of="caption", text=text))
            await asyncio.sleep(self.random.choice((0, 0.002, 0.01)))
        await self.worker.append(self.lease, Caption(text="🟨" * 3000), Completed(usage=Usage(), timings_s=Timings()))


async def cut_after(url: str, job_id: str, after: int | None, max_bytes: int) -> bytes:
    """Open the stream, abort the connection after `max_bytes`, and return the body received so far."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(request(job_id, after))
        received = b""
        while len(received) < max_bytes and (more := await reader.read(max_bytes - len(received))):
            received += more
    finally:
        writer.transport.abort()
    return body_of(received)


@pytest.mark.parametrize("cuts", [1000 if SOAK else 80])
async def test_stream_cut_anywhere_and_resumed_is_complete(
    redis_url: str, tmp_path: Path, store: Store, worker: ScriptedWorker, cuts: int
) -> None:
    chance = random.Random(6)
    in_frames = in_characters = 0
    async with gateway_process(redis_url, tmp_path / "data") as (url, _), AsyncExitStack() as stack:
        job_id = await create_job(url)
        writer = Writer(worker, await worker.claim(job_id), random.Random(7))
        received, after = b"", None
        await stack.enter_async_context(renewed(store, [writer.lease]))
        await stack.enter_async_context(asyncio.timeout(20 + cuts / 4))
        writing = asyncio.create_task(writer.run())
        for _ in range(cuts):
            body = await cut_after(url, job_id, after, chance.randint(1, 2500))
            complete = complete_frames(body)
            received += complete
            if ids := re.findall(rb"^id: (\d+)$", complete, re.MULTILINE):
                after = int(ids[-1])
            rest = body.rsplit(b"\n\n", 1)[-1]
            in_frames += bool(rest)
            in_characters += is_cut_inside_a_character(rest)
        writer.stop.set()
        await writing
        received += complete_frames(await cut_after(url, job_id, after, 1 << 30))
    expected = b"".join([sse.frame(job_id, entry) for entry in await all_entries(store, job_id)])
    assert received == expected
    print(f"\n{cuts} cuts, {in_frames} inside an event, {in_characters} inside a character; {len(expected)} bytes")
    assert in_frames > cuts / 4
    assert in_characters > cuts / 40


async def all_entries(store: Store, job_id: str) -> list[Entry]:
    entries: list[Entry] = []
    while more := await store.entries(job_id, entries[-1].seq if entries else 0):
        entries += more
    return entries


def is_cut_inside_a_character(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False


# -- many clients; some of them never read

CLIENTS, IDLE, JOBS, LIVE_S, UNREAD_S = (500, 50, 10, 20.0, 15.0) if SOAK else (60, 6, 3, 3.0, 5.0)
EVENTS_PER_S = 4
HISTORY_EVENTS, HISTORY_CHARS = 100, 4000
"""The size of each stream's history, which the clients that never read request: 400 KB."""
BYTES_PER_CLIENT = 64 * 1024
P99_MS = 100 if SOAK else 1000  # the machine also runs other tests


async def read_live(url: str, job_id: str, after: int, delays: list[float]) -> int:
    """Follow the job to its final event, record the delay of each text in `delays`, and return how many arrived."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    count = 0
    try:
        writer.write(request(job_id, after))
        while line := await reader.readline():
            if sent := re.match(rb'data: \{"of":"caption","text":"at ([\d.]+) ', line):
                delays.append(time.monotonic() - float(sent[1]))
                count += 1
            elif line.startswith(b"event: completed"):
                return count
    finally:
        writer.close()
    raise AssertionError("the stream ended early")


def request_without_reading(url: str, job_id: str) -> socket.socket:
    """Request the whole stream and never read it."""
    parts = urlsplit(url)
    idle = socket.socket()
    idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    idle.connect((parts.hostname, parts.port))
    idle.sendall(request(job_id))
    idle.setblocking(False)
    return idle


async def write_live(worker: ScriptedWorker, leases: list[Lease], seconds: float) -> int:
    """Append timestamped events to all jobs at a steady rate; return the number of events of each job."""
    count = int(seconds * EVENTS_PER_S)
    for _ in range(count):
        start = time.monotonic()
        for lease in leases:
            await worker.append(lease, Delta(of="caption", text=f"at {time.monotonic()} " + "word " * 10))
            await asyncio.sleep(1 / EVENTS_PER_S / len(leases) / 2)
        await asyncio.sleep(max(0.0, 1 / EVENTS_PER_S - (time.monotonic() - start)))
    for lease in leases:
        await worker.append(lease, Completed(usage=Usage(), timings_s=Timings()))
    return count


def connections(gateway: psutil.Process) -> set[int]:
    """Return the remote ports of the gateway's clients."""
    port = next(c.laddr.port for c in gateway.net_connections() if c.status == psutil.CONN_LISTEN)
    open_now = (c for c in gateway.net_connections() if c.status == psutil.CONN_ESTABLISHED)
    return {c.raddr.port for c in open_now if c.laddr.port == port}


def unsent_bytes(gateway: psutil.Process) -> list[int]:
    """Return the send queue in the kernel of each client connection: unsent and unacknowledged bytes."""
    port = next(c.laddr.port for c in gateway.net_connections() if c.status == psutil.CONN_LISTEN)
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [int(row[4].split(":")[0], 16) for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "01"]


async def test_clients_that_never_read_do_not_affect_others(
    redis_url: str, tmp_path: Path, store: Store, worker: ScriptedWorker
) -> None:
    delays: list[float] = []
    async with (
        gateway_process(redis_url, tmp_path / "data", unread_s=UNREAD_S) as (url, gateway),
        asyncio.timeout(60 + 2 * LIVE_S),
        AsyncExitStack() as stack,
    ):
        job_ids = [await create_job(url) for _ in range(JOBS)]
        leases = [await worker.claim(job_id) for job_id in job_ids]
        await stack.enter_async_context(renewed(store, leases))
        for lease in leases:
            history = [Delta(of="caption", text="x" * HISTORY_CHARS)] * HISTORY_EVENTS
            await worker.append(lease, Started(attempt=1), *history)
        after = HISTORY_EVENTS + 2
        with suppress(TimeoutError):
            async with asyncio.timeout(2):  # warm up, so that one-time allocations are not measured
                await asyncio.gather(*(read_live(url, job_ids[0], 0, []) for _ in range(40)))
        before = gateway.memory_info().rss

        idle = [request_without_reading(url, random.Random(k).choice(job_ids)) for k in range(IDLE)]
        start = time.monotonic()
        readers = [asyncio.create_task(read_live(url, job_ids[k % JOBS], after, delays)) for k in range(CLIENTS - IDLE)]
        idle_ports = {client.getsockname()[1] for client in idle}

        async def all_connected() -> bool:
            return len(connections(gateway)) == CLIENTS and idle_ports <= connections(gateway)

        await eventually(all_connected, 30)
        await asyncio.sleep(1)
        initial, kernel = (gateway.memory_info().rss - before) / CLIENTS, max(unsent_bytes(gateway))
        reading = [c for c in await store.redis.client_list() if c["cmd"] == "xread"]
        writing = asyncio.create_task(write_live(worker, leases, LIVE_S))

        async def all_dropped() -> bool:
            return not idle_ports & connections(gateway)

        await eventually(all_dropped, 30)
        dropped_s = time.monotonic() - start
        counts = await asyncio.gather(*readers)
        final = (gateway.memory_info().rss - before) / CLIENTS
        count = await writing
        for client in idle:
            client.close()
    assert set(counts) == {count}
    p99_ms = 1000 * statistics.quantiles(delays, n=100)[98]
    print(
        f"\n{CLIENTS} clients, {IDLE} never read: {initial / 1024:.0f} KB of gateway memory per client at the start,"
        f" {final / 1024:.0f} KB at the end, at most {kernel / 1024:.0f} KB per client in the kernel;"
        f" clients that never read were dropped after {dropped_s:.1f} s; delay of {len(delays)} events:"
        f" median {1000 * statistics.median(delays):.1f} ms, p99 {p99_ms:.1f} ms;"
        f" Redis connections that read for all clients: {len(reading)}"
    )
    assert len(reading) == 1
    assert max(initial, final) + kernel <= BYTES_PER_CLIENT
    assert dropped_s <= 30
    assert p99_ms < P99_MS
