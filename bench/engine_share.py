"""The share of the engine's speed that reaches clients: tokens per second through the service and by the engine alone.

    python bench/engine_share.py                      thirty videos, ten in the engine at once; three one after another
    python bench/engine_share.py --json FILE          also writes {"many", "one", "cpu_s_per_clip", "engine_cpu_ratio"}
    python bench/engine_share.py --stub               a stub engine of fixed speed: the service's own ceiling

Service and engine alternate on one machine, `--rounds` times, with the demo model. The engine alone runs in a process
of its own with the same arguments and environment, and receives the same turns at the same concurrency: the turns of a
video one after another, `--slots` videos concurrently ("many") or one video at a time ("one"). The service has as many
slots, and twice as many open jobs, so that a next video is always waiting. A round draws new videos, so that no cache
helps either side. `service_processes.py` counts CPU time, `stub_engine.py` is the stub.

The same turns also run on an engine alone whose threads wait actively, which is OpenMP's default (`SPINNING`). It is
faster on an idle machine, so the table has both. The figures are relative to the engine with the same environment.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the modules of this folder

from bench.concurrency import caption
from bench.service_processes import CpuTimes, cpu_times
from bench.stub_engine import WORDS, stub_round, write_720p_clip
from service.local.up import UpSettings, free_port, local_service
from workers.demo import scenes, world

JOB_TIMEOUT_S = 600.0
TARGETS = {"many": 0.65, "one": 0.9, "cpu_s_per_clip": 0.4, "engine_cpu_ratio": 1.15}
STUB_TARGETS = {"clips_per_s": 3.0, "loop_ms_per_clip": 60.0}
AT_MOST = frozenset({"cpu_s_per_clip", "engine_cpu_ratio", "loop_ms_per_clip"})
"""Figures that must not exceed their target; the others must reach it."""
SPINNING = {"GOMP_SPINCOUNT": "300000"}
"""The default of libgomp, which a worker overrides (`ENGINE_ENVIRONMENT`)."""


@dataclass(frozen=True)
class Side:
    """One round of one side. `engine_cpu_s`: CPU time of the engine's process."""

    tokens: int
    wall_s: float
    engine_cpu_s: float

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.wall_s


@dataclass(frozen=True)
class Pair:
    """The service and the engine alone on the same turns. `cpu`: CPU time of the service's processes.

    `spinning`: the engine alone with `SPINNING`.
    """

    service: Side
    engine: Side
    spinning: Side
    cpu: CpuTimes
    clips: int

    @property
    def sides(self) -> tuple[Side, ...]:
        return self.service, self.engine, self.spinning

    @property
    def share(self) -> float:
        return self.service.tokens_per_s / self.engine.tokens_per_s


class EngineAlone:
    """The engine in a child process (`engine_alone.py`), which answers one line of JSON with another."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def run(
        self, videos: Sequence[Path], jobs: Sequence[dict[str, Any]], *, at_once: int, **options: Any
    ) -> Side:
        """Run the turns of `jobs`, the finished jobs of `videos` with these options, `at_once` videos at a time."""
        assert self._process.stdin is not None
        answers = [[*(d["text"] for d in job["differentials"]), job["caption"]] for job in jobs]
        names = [str(video) for video in videos]
        request = {"videos": names, "options": options, "answers": answers, "at_once": at_once}
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        return Side(**json.loads(await self.line()))

    async def line(self) -> bytes:
        """Return the child's next line."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise SystemExit("the engine's process has ended")
        return line


Engines = tuple[EngineAlone, EngineAlone]
"""The engine alone: with the environment of the service's, and with `SPINNING`."""


@asynccontextmanager
async def engine_alone(directory: Path, **environment: str) -> AsyncIterator[EngineAlone]:
    """Start the engine alone, and wait until it is ready."""
    script = Path(__file__).with_name("engine_alone.py")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(script), str(directory)),
        env={**os.environ, **environment},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 24,
    )
    try:
        engine = EngineAlone(process)
        await engine.line()
        yield engine
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


def draw_videos(directory: Path, first_seed: int, count: int) -> list[Path]:
    """Draw `count` clips of the demo world with different seeds."""
    paths = [directory / f"clip-{first_seed + k}.mp4" for k in range(count)]
    for k, path in enumerate(paths):
        scenes.write_clip(path, scenes.make_scene(world.HELD_OUT_SEED + first_seed + k))
    return paths


async def caption_all(http: httpx.AsyncClient, videos: Sequence[Path], in_flight: int) -> list[dict[str, Any]]:
    """Caption the videos with `in_flight` open jobs at a time. Returns the jobs in the order of the videos."""
    places = asyncio.Semaphore(in_flight)

    async def one(video: Path) -> dict[str, Any]:
        async with places:
            return await caption(http, video)

    return await asyncio.gather(*(one(video) for video in videos))


async def measure_pair(http: httpx.AsyncClient, engines: Engines, videos: list[Path], at_once: int) -> Pair:
    """Caption the videos through the service, then run the same turns on each engine alone."""
    before, start = cpu_times(os.getpid()), time.monotonic()
    jobs = await caption_all(http, videos, 1 if at_once == 1 else 2 * at_once)
    wall_s, cpu = time.monotonic() - start, cpu_times(os.getpid()) - before
    tokens = sum(job["usage"]["completion_tokens"] for job in jobs)
    alone, spinning = [await engine.run(videos, jobs, at_once=at_once) for engine in engines]
    return Pair(Side(tokens, wall_s, cpu.engine_s), alone, spinning, cpu, len(videos))


async def measure(options: argparse.Namespace, directory: Path) -> tuple[list[Pair], list[Pair]]:
    """Return the measured pairs: many videos, and one at a time."""
    os.environ["SLOTS"] = str(options.slots)
    settings = UpSettings(data_dir=directory / "data", port=free_port())
    many: list[Pair] = []
    one: list[Pair] = []
    async with (
        local_service(settings),
        engine_alone(directory / "alone") as engine,
        engine_alone(directory / "spinning", **SPINNING) as spinning,
        httpx.AsyncClient(base_url=settings.url, timeout=JOB_TIMEOUT_S, trust_env=False, limits=httpx.Limits()) as http,
    ):
        warm_up = draw_videos(directory, 900, options.slots)
        await measure_pair(http, (engine, spinning), warm_up, options.slots)
        for number in range(options.rounds):
            videos = draw_videos(directory, 100 * number, options.videos + options.single)
            many.append(await measure_pair(http, (engine, spinning), videos[: options.videos], options.slots))
            one.append(await measure_pair(http, (engine, spinning), videos[options.videos :], 1))
    return many, one


def figures(many: list[Pair], one: list[Pair]) -> dict[str, float]:
    """Return the figures that have targets: the medians over the rounds."""
    return {
        "many": statistics.median(pair.share for pair in many),
        "one": statistics.median(pair.share for pair in one),
        "cpu_s_per_clip": statistics.median(pair.cpu.outside_engine_s / pair.clips for pair in many),
        "engine_cpu_ratio": statistics.median(
            (pair.service.engine_cpu_s / pair.service.tokens) / (pair.engine.engine_cpu_s / pair.engine.tokens)
            for pair in many
        ),
    }


def engine_table(many: list[Pair], one: list[Pair]) -> str:
    """Return one row for each pair, and the CPU time per clip by process."""
    rows = ["| | clips | service, tokens/s | alone | spinning | share | service, engine CPU s | alone | spinning |"]
    rows.append("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    rows += [
        f"| {name} | {pair.clips} | "
        + " | ".join(f"{side.tokens_per_s:.0f}" for side in pair.sides)
        + f" | {pair.share:.2f} | "
        + " | ".join(f"{side.engine_cpu_s:.1f}" for side in pair.sides)
        + " |"
        for name, pairs in (("many", many), ("one", one))
        for pair in pairs
    ]
    clips = sum(pair.clips for pair in many)
    rows += ["", "| CPU seconds per clip, many at once | |", "|---|---:|"]
    rows += [
        f"| {name.removesuffix('_s').replace('_', ' ')} | {sum(asdict(pair.cpu)[name] for pair in many) / clips:.3f} |"
        for name in asdict(many[0].cpu)
    ]
    return "\n".join(rows)


def target_table(measured: dict[str, float], targets: dict[str, float]) -> str:
    rows = ["| figure | target | measured | |", "|---|---:|---:|---|"]
    for name, target in targets.items():
        reached = measured[name] <= target if name in AT_MOST else measured[name] >= target
        sign = "≤" if name in AT_MOST else "≥"
        rows.append(
            f"| {name} | {sign} {target:g} | {measured[name]:.3f} | {'reached' if reached else 'not reached'} |"
        )
    return "\n".join(rows)


async def run(options: argparse.Namespace, directory: Path) -> tuple[str, dict[str, float], dict[str, float]]:
    """Measure. Returns a table, the figures and their targets."""
    if options.stub:
        clip = directory / "clip.mp4"
        write_720p_clip(clip)
        result = await stub_round(directory, clip, options.clips, options.concurrency, options.words)
        return result.table(), result.figures(), STUB_TARGETS
    many, one = await measure(options, directory)
    return engine_table(many, one), figures(many, one), TARGETS


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--videos", type=int, default=30, help="videos of a round with many at once")
    options.add_argument("--slots", type=int, default=10, help="videos in the engine at once")
    options.add_argument("--single", type=int, default=3, help="videos captioned one after another")
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--stub", action="store_true", help="measure with the stub engine")
    options.add_argument("--clips", type=int, default=96, help="clips counted with --stub")
    options.add_argument("--concurrency", type=int, default=32, help="clips in flight with --stub")
    options.add_argument("--words", type=int, default=WORDS, help="words of an answer of the stub engine")
    options.add_argument("--smoke", action="store_true", help="the smallest size: shows only that the benchmark works")
    options.add_argument("--json", type=Path, help="write the figures to this file")
    return options


def main() -> int:
    options = parser().parse_args()
    if options.smoke:
        options.videos = options.single = options.rounds = options.slots = 1
        options.clips, options.concurrency, options.words = 2, 2, 10
    with tempfile.TemporaryDirectory(prefix="sharecap-bench-") as name:
        table, measured, targets = asyncio.run(run(options, Path(name)))
    print(f"{platform.machine()}, {os.cpu_count()} CPU cores, {time.strftime('%Y-%m-%d')}\n")
    print(f"{table}\n\n{target_table(measured, targets)}")
    if options.json:
        options.json.write_text(json.dumps(measured, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
