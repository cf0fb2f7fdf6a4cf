"""Clients that write raw bytes to a gateway: endless, slow or silent ones, which no HTTP library would send."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx
import psutil

READ_TIMEOUT_S = 30.0


@asynccontextmanager
async def connection(
    url: str, source: str | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A TCP connection to the gateway, from the loopback address `source`; aborted at the end."""
    parts = urlsplit(url)
    local = (source, 0) if source else None
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, local_addr=local)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def read_to_end(reader: asyncio.StreamReader) -> bytes:
    """Return everything that the gateway sends until it closes or resets the connection. Raises TimeoutError."""
    received = b""
    async with asyncio.timeout(READ_TIMEOUT_S):
        with suppress(ConnectionError):
            while more := await reader.read(65_536):
                received += more
    return received


async def exchange(url: str, data: bytes) -> bytes:
    """Send `data` on a new connection and return everything that arrives until the gateway closes it."""
    async with connection(url) as (reader, writer):
        writer.write(data)
        return await read_to_end(reader)


async def send_endlessly(url: str, start: bytes, piece: bytes, max_bytes: int) -> tuple[int, bytes]:
    """Send `start`, then `piece` again and again until the gateway ends the connection, or `max_bytes` are sent.

    Returns the number of bytes that left this process, and the answer.
    """
    async with connection(url) as (reader, writer):
        answer = asyncio.create_task(read_to_end(reader))
        writer.write(start)
        sent, block = len(start), piece * (65_536 // len(piece))
        with suppress(ConnectionError):
            while sent < max_bytes and not answer.done():
                writer.write(block)
                sent += len(block)
                await writer.drain()
                await asyncio.sleep(0)
        with suppress(ConnectionError):
            return sent, await answer
    return sent, b""


def status_of(answer: bytes) -> int | None:
    """Return the status of the first response in `answer`, or None if there is none."""
    line = answer.partition(b"\r\n")[0].split()
    return int(line[1]) if len(line) > 1 else None


@dataclass
class Observations:
    """What normal use of a gateway looked like in a period: latencies in seconds, and its peak of memory."""

    latencies_s: dict[str, list[float]] = field(default_factory=dict)
    peak_bytes: int = 0
    peak_descriptors: int = 0

    def p99_ms(self, path: str) -> float:
        latencies = sorted(self.latencies_s[path])
        return 1000 * latencies[int(0.99 * len(latencies))]


@asynccontextmanager
async def observed(
    url: str, gateway: psutil.Process, *paths: str, pause_s: float = 0.05
) -> AsyncIterator[Observations]:
    """Request each of `paths` again and again on new connections. A request that fails raises at the end."""
    observations = Observations({path: [] for path in paths})

    async def watch(path: str) -> None:
        headers = {"Connection": "close"}
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30, headers=headers) as client:
            while True:
                start = time.monotonic()
                (await client.get(path)).raise_for_status()
                observations.latencies_s[path].append(time.monotonic() - start)
                await asyncio.sleep(pause_s)

    async def sample() -> None:
        while True:
            observations.peak_bytes = max(observations.peak_bytes, gateway.memory_info().rss)
            observations.peak_descriptors = max(observations.peak_descriptors, gateway.num_fds())
            await asyncio.sleep(0.1)

    tasks = [asyncio.create_task(watch(path)) for path in paths] + [asyncio.create_task(sample())]
    try:
        yield observations
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result
