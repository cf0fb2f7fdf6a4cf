"""A program that opens many slow connections to a gateway and prints how long each one stayed open, in seconds.

    python -m tests.service.connections.flood URL COUNT PER_SECOND

A quarter of them sends nothing, the others never complete their head or body. They come from 16 loopback addresses.
"""

import asyncio
import json
import resource
import sys
import time

from tests.service.connections.raw_http import connection, read_to_end

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
POST = (
    b"POST /recaption HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
)
STARTS = (b"", GET, GET + b"X-Filler: ", POST)
ADDRESSES = 16


async def stay_open(url: str, number: int) -> float | None:
    """Return how long the connection stayed open, or None if it could not be opened."""
    try:
        async with connection(url, f"127.0.0.{2 + number % ADDRESSES}") as (reader, writer):
            start = time.monotonic()
            writer.write(STARTS[number % len(STARTS)])
            await read_to_end(reader)
            return time.monotonic() - start
    except ConnectionError:
        return None


async def flood(url: str, count: int, per_second: float) -> list[float | None]:
    open_now = []
    for number in range(count):
        open_now.append(asyncio.create_task(stay_open(url, number)))
        await asyncio.sleep(1 / per_second)
    return await asyncio.gather(*open_now)


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(json.dumps(asyncio.run(flood(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))))
