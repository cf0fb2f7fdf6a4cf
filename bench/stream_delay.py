"""Where the delay of an event stream comes from: from a worker's append to the client's socket, stage by stage.

    python bench/stream_delay.py                          300 readers of 10 jobs, while 2 processes use all CPU time
    python bench/stream_delay.py --burners 0              on an idle machine
    python bench/stream_delay.py --appendfsync everysec   without waiting for the disk
    python bench/stream_delay.py --readers 20 --jobs 2 --seconds 3

Starts a Valkey server as `sharecap up` does, a gateway, and a process that appends events as a worker does. Prints the
median and the 99th percentile of each stage over all deliveries (one event to one reader), and the mean of each stage
over the slowest 1 % of deliveries. All processes read the same monotonic clock.

    append    until the writer knows that the event is stored: Valkey and its disk
    read      until the gateway has the event: its reading task waits for its turn
    gateway   until the gateway formats the event for this reader: other readers are served before
    client    until the reader has the event: the gateway's socket, the kernel, and the reading process
"""

import argparse
import asyncio
import atexit
import json
import multiprocessing
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil

from service.contract.events import Completed, Delta, Started
from service.contract.jobs import JobKind, RecaptionOptions, Record, Timings, Usage, new_job_id
from service.contract.store.connection import connect
from service.contract.store.entries import Entry
from service.contract.store.store import Store
from service.local.up import free_port, valkey

START_TIMEOUT_S = 60.0
TEXT = re.compile(r'"text":"at (\d+)')
STAGES = ("append", "read", "gateway", "client")
Delivery = tuple[float, ...]
"""The duration of each stage, in ms."""


@dataclass(frozen=True)
class Load:
    """The conditions of a run. `rate` is events per second of each job; each of the `burners` uses a whole CPU."""

    readers: int
    jobs: int
    rate: float
    seconds: float
    burners: int
    appendfsync: str


# -- the gateway's process


def run_gateway(log: Path) -> None:
    """Run the gateway, and write the times at which it reads and formats each event to `log` when it exits."""
    from service.app import main  # noqa: PLC0415 (only this process runs a gateway)
    from service.streaming import follower, sse  # noqa: PLC0415

    read: dict[str, int] = {}
    formatted: dict[str, list[int]] = {}
    add, frame = follower.Channel.add, sse.frame

    def timed_add(channel: follower.Channel, entries: list[Entry]) -> None:
        now = time.monotonic_ns()
        for entry in entries:
            if match := TEXT.search(entry.data):
                read[match[1]] = now
        add(channel, entries)

    def timed_frame(job_id: str, entry: Entry) -> bytes:
        if match := TEXT.search(entry.data):
            formatted.setdefault(match[1], []).append(time.monotonic_ns())
        return frame(job_id, entry)

    follower.Channel.add, sse.frame = timed_add, timed_frame  # type: ignore[method-assign]
    atexit.register(lambda: log.write_text(json.dumps({"read": read, "formatted": formatted})))
    main()


# -- the worker's process


def run_writer(redis_url: str, job_ids: list[str], load: Load, log: Path) -> None:
    """Append events to all jobs at a steady rate; each contains the time of its append.

    Writes the times at which the appends returned to `log`.
    """
    stored: dict[str, int] = {}
    asyncio.run(_write(redis_url, job_ids, load, stored))
    log.write_text(json.dumps(stored))


async def _write(redis_url: str, job_ids: list[str], load: Load, stored: dict[str, int]) -> None:
    async with connect(redis_url) as redis:
        await asyncio.gather(*(_write_job(Store(redis), job_id, load, stored) for job_id in job_ids))


async def _write_job(store: Store, job_id: str, load: Load, stored: dict[str, int]) -> None:
    lease = await store.claim(job_id)
    assert lease is not None
    await store.append(lease, 2, Started(attempt=1))
    started_at = time.monotonic()
    count = int(load.seconds * load.rate)
    for number in range(count):
        await asyncio.sleep(max(0.0, started_at + number / load.rate - time.monotonic()))
        await store.renew(lease)
        now = str(time.monotonic_ns())
        await store.append(lease, 3 + number, Delta(of="caption", text=f"at {now} " + "word " * 10))
        stored[now] = time.monotonic_ns()
    await store.append(lease, 3 + count, Completed(usage=Usage(), timings_s=Timings()))


def burn() -> None:
    """Use all the time of one CPU."""
    while True:
        pass


# -- the readers: this process


async def read(url: str, job_id: str, received: dict[str, list[int]]) -> None:
    """Follow the job to its end; add the time at which each event arrives to `received`."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(f"GET /captions/{job_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        while line := await reader.readline():
            if match := TEXT.search(line.decode(errors="replace")):
                received.setdefault(match[1], []).append(time.monotonic_ns())
            elif line.startswith(b"event: completed"):
                return
    finally:
        writer.close()
    raise SystemExit(f"the stream of {job_id} ended early")


async def create_jobs(redis_url: str, count: int) -> list[str]:
    async with connect(redis_url, patience_s=START_TIMEOUT_S) as redis:
        options, now = RecaptionOptions(prompt="a fox"), datetime.now(UTC)
        records = [
            Record(id=new_job_id(), kind=JobKind.RECAPTION, options=options, created_at=now) for _ in range(count)
        ]
        for record in records:
            await Store(redis).create(record)
        return [record.id for record in records]


async def until_healthy(url: str) -> None:
    async with asyncio.timeout(START_TIMEOUT_S), httpx.AsyncClient(trust_env=False) as client:
        while True:
            try:
                (await client.get(f"{url}/healthz")).raise_for_status()
            except httpx.HTTPError:
                await asyncio.sleep(0.1)
            else:
                return


@dataclass(frozen=True)
class Measured:
    """All deliveries of a run, and by how much memory the gateway grew for each reader that connected."""

    deliveries: list[Delivery]
    reader_bytes: float


async def measure(directory: Path, load: Load) -> Measured:
    """Run everything once."""
    log, writer_log = directory / "gateway.json", directory / "writer.json"
    port, socket_path = free_port(), directory / "valkey.sock"
    redis_url, url = f"unix://{socket_path}", f"http://127.0.0.1:{port}"
    env = {"REDIS_URL": redis_url, "DATA_DIR": str(directory), "PORT": str(port), "MIN_FREE_BYTES": "0"}
    env |= {"MAX_CONNECTIONS": "16384", "MAX_CONNECTIONS_PER_ADDRESS": "8192"}  # all readers have one address
    received: dict[str, list[int]] = {}
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        server = [*valkey(directory / "valkey", socket_path).command, "--appendfsync", load.appendfsync]
        stack.enter_context(program(server, {}))
        job_ids = await create_jobs(redis_url, load.jobs)
        gateway = stack.enter_context(program([sys.executable, __file__, "--gateway-log", str(log)], env))
        await until_healthy(url)
        memory = psutil.Process(gateway.pid).memory_info
        before = memory().rss
        readers = [asyncio.create_task(read(url, job_ids[k % load.jobs], received)) for k in range(load.readers)]
        await until_following(url, load.readers)
        reader_bytes = (memory().rss - before) / load.readers
        processes = [spawn.Process(target=burn) for _ in range(load.burners)]
        processes.append(spawn.Process(target=run_writer, args=(redis_url, job_ids, load, writer_log)))
        for process in processes:
            process.start()
            stack.callback(process.join)
            stack.callback(process.kill)
        async with asyncio.timeout(60 + 3 * load.seconds):
            await asyncio.gather(*readers)
        await asyncio.to_thread(processes[-1].join, 60)
        gateway.send_signal(signal.SIGTERM)
        await asyncio.to_thread(gateway.wait, 60)
    times = json.loads(log.read_text())
    measured = deliveries(json.loads(writer_log.read_text()), times["read"], times["formatted"], received)
    return Measured(list(measured), reader_bytes)


async def until_following(url: str, readers: int) -> None:
    """Wait until the gateway's metrics show this number of open streams."""
    pattern = re.compile(r"^sharecap_event_streams (\S+)", re.MULTILINE)
    async with asyncio.timeout(START_TIMEOUT_S), httpx.AsyncClient(trust_env=False) as client:
        while True:
            gauge = pattern.search((await client.get(f"{url}/metrics")).text)
            if gauge and float(gauge[1]) >= readers:
                return
            await asyncio.sleep(0.2)


@contextmanager
def program(command: Sequence[str], env: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a program in this environment until the context ends."""
    with subprocess.Popen(command, env={**os.environ, **env}, stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def deliveries(
    stored_ns: dict[str, int],
    read_ns: dict[str, int],
    formatted_ns: dict[str, list[int]],
    received_ns: dict[str, list[int]],
) -> Iterator[Delivery]:
    """Yield the stages of each delivery. The readers of an event receive it in the order in which it is formatted."""
    for appended, received in received_ns.items():
        in_gateway = read_ns[appended]
        stored = min(stored_ns[appended], in_gateway)  # the gateway may have it before the writer's append returns
        for formatted, arrived in zip(sorted(formatted_ns[appended]), sorted(received), strict=True):
            times = (int(appended), stored, in_gateway, formatted, arrived)
            yield tuple((end - start) / 1e6 for start, end in pairwise(times))


def report(measured: list[Delivery]) -> str:
    """Return the printed table."""
    slowest = sorted(measured, key=sum)[-max(1, len(measured) // 100) :]
    rows = [("all", [sum(delivery) for delivery in measured], [sum(delivery) for delivery in slowest])]
    rows += [
        (name, [delivery[place] for delivery in measured], [delivery[place] for delivery in slowest])
        for place, name in enumerate(STAGES)
    ]
    lines = [
        f"{'stage':<10}{'median':>10}{'p99':>10}{'mean of the slowest 1 %':>26}   (ms, {len(measured)} deliveries)"
    ]
    for name, values, slow in rows:
        p99 = statistics.quantiles(values, n=100)[98]
        lines.append(f"{name:<10}{statistics.median(values):>10.1f}{p99:>10.1f}{statistics.mean(slow):>26.1f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readers", type=int, default=300)
    parser.add_argument("--jobs", type=int, default=10)
    parser.add_argument("--rate", type=float, default=4, help="events per second of each job")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--burners", type=int, default=2, help="processes that use all the time of one CPU each")
    parser.add_argument("--appendfsync", choices=("always", "everysec"), default="always")
    parser.add_argument("--gateway-log", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.gateway_log:
        run_gateway(options.gateway_log)
        return
    load = Load(options.readers, options.jobs, options.rate, options.seconds, options.burners, options.appendfsync)
    with tempfile.TemporaryDirectory(prefix="sharecap-bench-") as directory:
        measured = asyncio.run(measure(Path(directory), load))
    print(report(measured.deliveries))
    print(f"gateway memory per reader: {measured.reader_bytes / 1024:.0f} KB")


if __name__ == "__main__":
    main()
