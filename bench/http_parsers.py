"""The HTTP parsers that uvicorn offers, with the same small application: requests and uploaded bytes per second.

    python bench/http_parsers.py [--seconds 5] [--rounds 3]

Compares uvicorn's httptools protocol, its h11 protocol, and the gateway's own (httptools with bounds). Each server runs
in a process of its own. Sixteen connections send requests one after another; then one connection uploads 512 MiB.
The servers take turns for `--rounds` rounds; the best round of each counts, because other programs disturb a round.
"""

import argparse
import asyncio
import multiprocessing
import time
from functools import partial
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry, Counter
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.connections.protocol import BoundedProtocol
from service.connections.table import ConnectionTable
from service.local.up import free_port
from service.settings import Settings

NAMES = ("httptools", "h11", "bounded httptools")
CONNECTIONS = 16
UPLOAD_BYTES = 512 << 20
BLOCK = bytes(256 << 10)
REQUEST = (
    b"GET /captions?limit=20 HTTP/1.1\r\nHost: localhost:8000\r\nAccept: */*\r\nAccept-Encoding: gzip, deflate\r\n"
    b"Connection: keep-alive\r\nUser-Agent: bench\r\nAuthorization: Bearer sc_0123456789abcdef_0123456789abcdef\r\n\r\n"
)
UPLOAD = b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % UPLOAD_BYTES


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Read the body and answer with two bytes."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-length", b"2"), (b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


def protocol(name: str) -> Any:
    """Return the protocol class, or a function that creates protocols."""
    if name == "bounded httptools":
        table = ConnectionTable(1000, 1000, Counter("closed", "…", ["reason"], registry=CollectorRegistry()))
        return partial(BoundedProtocol, settings=Settings(), table=table)
    return HttpToolsProtocol if name == "httptools" else H11Protocol


def serve(name: str, port: int) -> None:
    uvicorn.run(
        application, port=port, http=protocol(name), loop="uvloop", log_level="error", lifespan="off", ws="none"
    )


async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the server as soon as it listens."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.05)


async def count_requests(port: int, end: float) -> int:
    """Send requests on one connection until `end`. Returns how many were answered."""
    reader, writer = await connect(port)
    count = 0
    while time.perf_counter() < end:
        writer.write(REQUEST)
        await reader.readuntil(b"ok")
        count += 1
    writer.close()
    return count


async def requests_per_s(port: int, seconds: float) -> float:
    _, writer = await connect(port)
    writer.close()
    end = time.perf_counter() + seconds
    return sum(await asyncio.gather(*(count_requests(port, end) for _ in range(CONNECTIONS)))) / seconds


async def upload_mb_per_s(port: int) -> float:
    reader, writer = await connect(port)
    start = time.perf_counter()
    writer.write(UPLOAD)
    for _ in range(UPLOAD_BYTES // len(BLOCK)):
        writer.write(BLOCK)
        await writer.drain()
    assert b" 200 " in await reader.readline()
    writer.close()
    return UPLOAD_BYTES / 1e6 / (time.perf_counter() - start)


def measure(name: str, seconds: float) -> tuple[float, float]:
    """Return requests per second and uploaded MB per second of one round."""
    port = free_port()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(name, port), daemon=True)
    server.start()
    try:
        return asyncio.run(requests_per_s(port, seconds)), asyncio.run(upload_mb_per_s(port))
    finally:
        server.kill()
        server.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of each measurement of requests")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in NAMES}
    for _ in range(arguments.rounds):
        for name in NAMES:
            results[name].append(measure(name, arguments.seconds))
    for name, rounds in results.items():
        rates, uploads = zip(*rounds, strict=True)
        print(f"{name:18} {max(rates):7.0f} requests/s   {max(uploads):6.0f} MB/s uploaded")


if __name__ == "__main__":
    main()
