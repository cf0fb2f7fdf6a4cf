"""What the gateway costs: uploads against a bare route, GET of a long job, and the event streams of many clients.

    python bench/gateway.py --json FILE
    python bench/gateway.py --parts upload --uploads 20
    python bench/gateway.py --smoke                        a quick check

    upload     `POST /captions` with a video of 2 MB, several at once, alternating with a bare Starlette route that
               writes the same body to the same disk, syncs the file and its directory, and writes one Redis record
    get        `GET` of jobs with 300 differentials: the first one, which replays all events, and later ones
    streams    `bench/stream_delay.py` with 2,000 readers, on an otherwise idle machine

Starts a Valkey server as `sharecap up` does (each write is synced to the disk), and a gateway, but no worker.
"""

import argparse
import asyncio
import http.client
import json
import os
import platform
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the modules of this folder

from bench import stream_delay
from bench.stream_delay import program, until_healthy
from service.contract.events import Delta, Differential, Event, Keyframes, Started, Video
from service.contract.jobs import JobKind, Keyframe, Record, VideoOptions, new_job_id
from service.contract.store.connection import connect
from service.contract.store.entries import event_json
from service.contract.store.keys import events_key
from service.contract.store.store import Store
from service.local.up import LOCAL_HOST, free_port, valkey

UPLOAD_SHARE_TARGET, P99_TARGET_MS, CLIENT_TARGET_KB = 0.6, 100.0, 64.0
VIDEO_BYTES = 2_000_000
BARE_ROUTE = Path(__file__).with_name("bare_route.py")
PARTS = ("upload", "get", "streams")
BOUNDARY = "sharecap-bench"


@dataclass(frozen=True)
class Size:
    """How much is measured. `at_once` uploads run concurrently; `deltas` is their number for each differential."""

    rounds: int = 6
    uploads: int = 40
    at_once: int = 4
    jobs: int = 5
    differentials: int = 300
    deltas: int = 20
    gets: int = 20
    readers: int = 2000
    seconds: float = 20.0


SMOKE = Size(rounds=1, uploads=3, at_once=2, jobs=1, differentials=10, deltas=2, gets=2, readers=10, seconds=1.0)


@dataclass(frozen=True)
class Row:
    """One line of the result. `target`: what it should be at most or at least, if there is a target."""

    figure: str
    value: float
    unit: str = ""
    target: str = ""


# -- uploads


def video_body(directory: Path) -> bytes:
    """Return a multipart body with a real video, padded to `VIDEO_BYTES` with an empty box."""
    import av  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    path = directory / "clip.mp4"
    noise = np.random.default_rng(1).integers(0, 256, (3, 90, 160, 3), np.uint8)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("h264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        for image in noise:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24").reformat(1280, 720)))
        out.mux(stream.encode())
    data = path.read_bytes()
    room = VIDEO_BYTES - len(data)
    data += room.to_bytes(4, "big") + b"free" + secrets.token_bytes(room - 8)
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="clip.mp4"\r\n\r\n'
    return head.encode() + data + f"\r\n--{BOUNDARY}--\r\n".encode()


def post_all(port: int, body: bytes, size: Size) -> float:
    """Post `body` `size.uploads` times and return the posts per second."""
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}

    def post_some(count: int) -> None:
        connection = http.client.HTTPConnection(LOCAL_HOST, port, timeout=60)
        for _ in range(count):
            connection.request("POST", "/captions", body, headers)
            answer = connection.getresponse()
            if answer.status != 202:
                raise SystemExit(f"{answer.status}: {answer.read().decode()}")
            answer.read()
        connection.close()

    start = time.monotonic()
    with ThreadPoolExecutor(size.at_once) as pool:
        list(pool.map(post_some, [size.uploads // size.at_once] * size.at_once))
    return size.uploads // size.at_once * size.at_once / (time.monotonic() - start)


def cpu_s(pid: int) -> float:
    """Return the CPU time so far of a process and its children."""
    process = psutil.Process(pid)
    times = [process.cpu_times(), *(child.cpu_times() for child in process.children(recursive=True))]
    return float(sum(t.user + t.system + t.children_user + t.children_system for t in times))


def measure_uploads(servers: "Servers", size: Size) -> Iterator[Row]:
    """Yield the rates of both routes, from rounds that alternate, and what an upload costs the gateway."""
    body = video_body(servers.directory)
    ports = {"gateway": servers.gateway_port, "bare": servers.bare_port}
    rates: dict[str, list[float]] = {name: [] for name in ports}
    used: dict[str, float] = dict.fromkeys(ports, 0.0)
    pids = {"gateway": servers.gateway_pid, "bare": servers.bare_pid}
    for number in range(size.rounds + 1):
        for name, port in ports.items():
            before = cpu_s(pids[name])
            rate = post_all(port, body, size)
            if number or size is SMOKE:  # the first round warms up
                rates[name].append(rate)
                used[name] += cpu_s(pids[name]) - before
    median = {name: statistics.median(values) for name, values in rates.items()}
    count = len(rates["gateway"]) * (size.uploads // size.at_once * size.at_once)
    yield Row("upload: POST /captions", median["gateway"], "/s")
    yield Row("upload: bare route", median["bare"], "/s")
    yield Row("upload: share of the bare rate", median["gateway"] / median["bare"], "", f"≥ {UPLOAD_SHARE_TARGET}")
    yield Row("upload: CPU of gateway and probe", 1000 * used["gateway"] / count, "ms")
    yield Row("upload: CPU of the bare route", 1000 * used["bare"] / count, "ms")


# -- GET of a long job


def history(size: Size) -> Iterator[Event]:
    """Yield the events of a video job that is still running."""
    yield Started(attempt=1)
    yield Video(duration_s=600, width=1280, height=720, fps=25, interval_s=2)
    for index in range(size.differentials):
        yield Keyframes(keyframes=[Keyframe(index=index, time_s=2 * index)], complete=False)
        for _ in range(size.deltas):
            yield Delta(of="differential", keyframe=index, text="a man walks over a bridge ")
        yield Differential(keyframe=index, time_s=2 * index, text="a man walks over a bridge " * size.deltas)


async def create_long_job(redis_url: str, size: Size) -> str:
    """Write the job's record and events, and return its id."""
    record = Record(id=new_job_id(), kind=JobKind.VIDEO, options=VideoOptions(), created_at=datetime.now(UTC))
    async with connect(redis_url) as redis:
        await Store(redis).create(record)
        async with redis.pipeline(transaction=False) as pipe:
            for seq, event in enumerate(history(size), 2):
                fields = {"type": event.type, "data": event_json(event), "at": str(int(time.time() * 1000))}
                pipe.xadd(events_key(record.id), fields, id=f"{seq}-0")  # type: ignore[arg-type]
            await pipe.execute()
    return record.id


def measure_gets(servers: "Servers", size: Size) -> Iterator[Row]:
    """Yield the time and the CPU time of the first and of later requests."""
    job_ids = [asyncio.run(create_long_job(servers.redis_url, size)) for _ in range(size.jobs)]
    connection = http.client.HTTPConnection(LOCAL_HOST, servers.gateway_port, timeout=60)

    def get(job_id: str) -> float:
        start = time.monotonic()
        connection.request("GET", f"/captions/{job_id}")
        answer = connection.getresponse()
        job = json.loads(answer.read())
        elapsed_s = time.monotonic() - start
        if len(job.get("differentials", ())) != size.differentials:
            raise SystemExit(f"{answer.status}: the job is incomplete")
        return elapsed_s

    def timed(calls: Callable[[], list[float]]) -> tuple[float, float]:
        before = cpu_s(servers.gateway_pid)
        times = calls()
        return 1000 * statistics.median(times), 1000 * (cpu_s(servers.gateway_pid) - before) / len(times)

    first = timed(lambda: [get(job_id) for job_id in job_ids])
    later = timed(lambda: [get(job_id) for _ in range(size.gets) for job_id in job_ids])
    for name, (elapsed_ms, used_ms) in (("first request, all events", first), ("later request", later)):
        yield Row(f"get: {name}", elapsed_ms, "ms")
        yield Row(f"get: {name}: CPU of the gateway", used_ms, "ms")
    connection.close()


# -- streams


def measure_streams(directory: Path, size: Size) -> Iterator[Row]:
    """Yield delay and memory of many readers."""
    load = stream_delay.Load(size.readers, jobs=20, rate=1, seconds=size.seconds, burners=0, appendfsync="always")
    measured = asyncio.run(stream_delay.measure(directory, load))
    delays = [sum(delivery) for delivery in measured.deliveries]
    p99_ms = statistics.quantiles(delays, n=100)[98]
    yield Row(f"streams: median delay, {size.readers} readers", statistics.median(delays), "ms")
    yield Row(f"streams: p99 delay, {size.readers} readers", p99_ms, "ms", f"≤ {P99_TARGET_MS:g}")
    yield Row("streams: gateway memory per reader", measured.reader_bytes / 1024, "KB", f"≤ {CLIENT_TARGET_KB:g}")


# -- the processes


@dataclass(frozen=True)
class Servers:
    """The running servers."""

    directory: Path
    redis_url: str
    gateway_port: int
    gateway_pid: int
    bare_port: int
    bare_pid: int


@contextmanager
def running_servers(directory: Path) -> Iterator[Servers]:
    """Start Valkey, a gateway and the bare route; stop them at the end."""
    socket_path, data, bare_files = directory / "valkey.sock", directory / "data", directory / "bare"
    redis_url, ports = f"unix://{socket_path}", (free_port(), free_port())
    bare_files.mkdir()
    env = {"REDIS_URL": redis_url, "DATA_DIR": str(data), "PORT": str(ports[0]), "MIN_FREE_BYTES": "0"}
    bare = [sys.executable, str(BARE_ROUTE), str(ports[1]), str(bare_files), redis_url]
    with ExitStack() as stack:
        stack.enter_context(program(valkey(directory / "valkey", socket_path).command, {}))
        gateway_pid = stack.enter_context(program([sys.executable, "-m", "service"], env)).pid
        bare_pid = stack.enter_context(program(bare, {})).pid
        for port in ports:
            asyncio.run(until_healthy(f"http://{LOCAL_HOST}:{port}"))
        yield Servers(directory, redis_url, ports[0], gateway_pid, ports[1], bare_pid)


def measure(parts: list[str], size: Size) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="sharecap-bench-") as name:
        directory = Path(name)
        if "upload" in parts or "get" in parts:
            with running_servers(directory) as servers:
                yield from measure_uploads(servers, size) if "upload" in parts else ()
                yield from measure_gets(servers, size) if "get" in parts else ()
    if "streams" in parts:
        with tempfile.TemporaryDirectory(prefix="sharecap-bench-") as name:
            yield from measure_streams(Path(name), size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--smoke", action="store_true", help="a few requests of each kind")
    options = parser.parse_args()
    machine = f"{platform.machine()}, {os.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f}"
    print(f"{machine}, {time.strftime('%Y-%m-%d')}\n")
    print("| figure | measured | target |\n|---|---:|---:|")
    rows = []
    for row in measure(options.parts, SMOKE if options.smoke else Size()):
        rows.append(row)
        print(f"| {row.figure} | {row.value:.3g} {row.unit} | {row.target} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))


if __name__ == "__main__":
    main()
