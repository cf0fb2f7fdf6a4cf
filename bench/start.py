"""How long the service takes to start: the gateway, a worker with the demo model, and `sharecap demo` as a whole.

    python bench/start.py --json FILE
    python bench/start.py --parts gateway worker
    python bench/start.py --smoke                 the gateway and the import of the command, once

    gateway    from the start of the process to its first answer, with a running Valkey server
    worker     from the start of the process until its card in Redis shows that its model is loaded
    demo       the whole command: it starts everything, captions a clip, recaptions a prompt, and stops. This is what
               `make demo` does once the virtual environment exists
    import     CPU time of importing what each process imports at its start

The table has the median of several starts, without a first one: then files are in the page cache, and vLLM's caches
are filled.
"""

import argparse
import asyncio
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the modules of this folder

from bench.stream_delay import program
from service.contract.store.connection import connect
from service.contract.store.store import Store
from service.local.up import LOCAL_HOST, free_port, valkey

POLL_S = 0.01
TIMEOUT_S = 180.0
RUNS = 3
PARTS = ("gateway", "worker", "demo", "import")
IMPORTS = {"gateway": "service.app", "worker": "workers.models.load", "command": "sharecap_client.cli.app"}


@dataclass(frozen=True)
class Row:
    """One line of the table, in seconds; `target_s` can be None."""

    figure: str
    seconds: float
    target_s: float | None = None


async def _until_healthy(port: int) -> None:
    async with httpx.AsyncClient(base_url=f"http://{LOCAL_HOST}:{port}", trust_env=False) as client:
        while True:
            try:
                (await client.get("/healthz")).raise_for_status()
            except httpx.HTTPError:
                await asyncio.sleep(POLL_S)
            else:
                return


async def _until_worker_is_ready(redis_url: str) -> None:
    async with connect(redis_url) as redis:
        while not await Store(redis).workers():
            await asyncio.sleep(POLL_S)


def _within_timeout(waiting: Callable[[], object]) -> float:
    """Return how long `waiting` took to finish."""

    async def wait() -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await waiting()  # type: ignore[misc]

    start = time.monotonic()
    asyncio.run(wait())
    return time.monotonic() - start


def start_gateway(redis_url: str, directory: Path) -> float:
    port = free_port()
    env = {"REDIS_URL": redis_url, "DATA_DIR": str(directory / "data"), "PORT": str(port), "MIN_FREE_BYTES": "0"}
    with program([sys.executable, "-P", "-m", "service"], env):
        return _within_timeout(lambda: _until_healthy(port))


def start_worker(redis_url: str, directory: Path) -> float:
    env = {"REDIS_URL": redis_url, "DATA_DIR": str(directory / "data")}
    with program([sys.executable, "-P", "-m", "workers.main"], env) as process:
        seconds = _within_timeout(lambda: _until_worker_is_ready(redis_url))
        process.terminate()
        process.wait(TIMEOUT_S)
        return seconds


def run_demo() -> float:
    command = [str(Path(sys.executable).with_name("sharecap")), "demo"]
    start = time.monotonic()
    subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_S)
    return time.monotonic() - start


def import_cpu_s(module: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True, capture_output=True, timeout=TIMEOUT_S)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def median(start: Callable[[], float], runs: int) -> float:
    """Return the median of `runs` starts. If there are several, another one comes first."""
    if runs > 1:
        start()
    return statistics.median(start() for _ in range(runs))


def measure(parts: Sequence[str], runs: int, imports: Iterable[str]) -> Iterator[Row]:
    """Measure the parts. `imports` are the processes of `IMPORTS` that the part `import` measures."""
    with tempfile.TemporaryDirectory(prefix="sharecap-bench-") as name, ExitStack() as stack:
        directory = Path(name)
        socket_path = directory / "valkey.sock"
        redis_url = f"unix://{socket_path}"
        stack.enter_context(program(valkey(directory / "valkey", socket_path).command, {}))
        if "gateway" in parts:
            yield Row("gateway answers", median(lambda: start_gateway(redis_url, directory), runs), 2)
        if "worker" in parts:
            yield Row(
                "worker with the demo model is ready", median(lambda: start_worker(redis_url, directory), runs), 20
            )
    if "demo" in parts:
        yield Row("`sharecap demo`", median(run_demo, runs), 35)
    if "import" in parts:
        for process in imports:
            module = IMPORTS[process]
            yield Row(f"import of {process} (`{module}`): CPU", median(partial(import_cpu_s, module), runs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--smoke", action="store_true", help="the gateway and the import of the command, once")
    options = parser.parse_args()
    parts, runs, imports = options.parts, options.runs, list(IMPORTS)
    if options.smoke:
        parts, runs, imports = ["gateway", "import"], 1, ["command"]
    machine = f"{platform.machine()}, {os.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f}"
    print(f"{machine}, {time.strftime('%Y-%m-%d')}\n\n| figure | seconds | target |\n|---|---:|---:|")
    rows = []
    for row in measure(parts, runs, imports):
        rows.append(row)
        print(
            f"| {row.figure} | {row.seconds:.2f} | {'' if row.target_s is None else f'≤ {row.target_s:g}'} |",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))


if __name__ == "__main__":
    main()
