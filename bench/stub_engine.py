"""A stub engine of fixed speed for `engine_share.py --stub`, and the round that measures the service around it.

Every `STUB_STEP_S` (environment) the engine generates one word for each running turn, however many run; an answer has
`STUB_WORDS` words. Run as a program, this module is a worker whose models are stubs. Everything else of the service is
real: uploads, probes, decoding, keyframes, events and streams.
"""

import asyncio
import os
import sys
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the modules of this folder

from bench.concurrency import caption
from bench.service_processes import CpuTimes, cpu_times, thread_cpu_s
from service.contract.jobs import Usage
from service.local.supervisor import Child, Supervisor
from service.local.up import LOCAL_HOST, LOGS, free_port, gateway, valkey
from workers.models.engine import Done, Features, ModelDefaults, Piece, Turn
from workers.process import Models, work
from workers.prompts.trained import TRAINED_PROMPTS
from workers.settings import Settings

STEP_S, WORDS = 0.02, 120
READY_TIMEOUT_S = 60.0
JOB_TIMEOUT_S = 300.0
IMAGE_TOKENS = 1500
LOOP_THREAD = "loop-thread"
"""A file in the data directory: process and thread id of the worker's event loop."""
INTERVAL_S = "2.5"
"""Longer than the clip: its first and its last frame become keyframes, which is three turns with the summary."""


class StubCaptioner:
    """Generates one word for each running turn in every step of `step_s`."""

    context_tokens = 16384
    takes_hd_num = True
    alive, stalled = True, False

    def __init__(self, step_s: float, words: int) -> None:
        self.defaults = ModelDefaults()
        self.prompts = TRAINED_PROMPTS
        self._step_s, self._words = step_s, words
        self._step = asyncio.Event()
        self._stepping = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._step_s)
            self._step.set()
            self._step = asyncio.Event()

    async def generate(self, turn: Turn, request_id: str) -> AsyncGenerator[Piece | Done, None]:
        for _ in range(min(self._words, turn.max_tokens)):
            await self._step.wait()
            yield Piece("word ")
        tokens = await self.prompt_tokens(turn)
        yield Done(Usage(prompt_tokens=tokens, completion_tokens=self._words), "stop")

    async def prompt_tokens(self, turn: Turn) -> int:
        return self.count_tokens(turn.prompt) + IMAGE_TOKENS * len(turn.images)

    def count_tokens(self, text: str) -> int:
        return len(text.split())


class StubEncoder:
    """Returns features that all differ."""

    async def encode(self, images: Sequence[Any]) -> Features:
        return np.eye(len(images), dtype=np.float32)


def load(settings: Settings) -> Models:
    (settings.data_dir / LOOP_THREAD).write_text(f"{os.getpid()} {threading.get_native_id()}")
    captioner = StubCaptioner(float(os.environ["STUB_STEP_S"]), int(os.environ["STUB_WORDS"]))
    return Models(captioner, StubEncoder(), settings.slots or 4, stop=lambda: None)


def write_720p_clip(path: Path) -> None:
    """Write a clip of 2.2 s of moving noise, 1280 x 720, H.264."""
    texture = np.random.default_rng(0).integers(0, 256, (90, 190, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=24, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        for k in range(53):
            picture = np.ascontiguousarray(texture[:, 4 * k : 4 * k + 1280])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())


@dataclass(frozen=True)
class StubResult:
    """All counted clips with the stub engine.

    `turns`: captioning turns of one clip, with the summary. `loop_s`: CPU time of the worker's event loop.
    """

    clips: int
    turns: int
    wall_s: float
    cpu: CpuTimes
    loop_s: float

    def figures(self) -> dict[str, float]:
        return {
            "clips_per_s": self.clips / self.wall_s,
            "loop_ms_per_clip": 1000 * self.loop_s / self.clips,
            "cpu_s_per_clip": self.cpu.outside_engine_s / self.clips,
        }

    def table(self) -> str:
        times = {name: value for name, value in vars(self.cpu).items() if name != "engine_s"}
        times["of the worker: event loop"] = self.loop_s
        rows = [f"{self.clips} clips of 2.2 s, 720p, {self.turns} turns each, in {self.wall_s:.1f} s", ""]
        rows += ["| CPU seconds per clip | |", "|---|---:|"]
        rows += [f"| {name.removesuffix('_s')} | {value / self.clips:.3f} |" for name, value in times.items()]
        return "\n".join(rows)


async def stub_round(directory: Path, clip: Path, clips: int, concurrency: int, words: int = WORDS) -> StubResult:
    """Caption `clip` again and again with `concurrency` open jobs. The stub's answers have `words` words.

    The first `concurrency` clips that end are not counted, the next `clips` are, while others continue.
    """
    data_dir = directory / "data"
    async with (
        _service(data_dir, concurrency, words) as url,
        httpx.AsyncClient(base_url=url, timeout=JOB_TIMEOUT_S, trust_env=False, limits=httpx.Limits()) as http,
    ):
        ended: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

        async def client() -> None:
            while True:
                ended.put_nowait(await caption(http, clip, interval_s=INTERVAL_S))

        loop_thread = [int(word) for word in (data_dir / LOOP_THREAD).read_text().split()]
        async with asyncio.TaskGroup() as group:
            clients = [group.create_task(client()) for _ in range(concurrency)]
            await _take(ended, concurrency)
            before, loop_s, start = cpu_times(os.getpid()), thread_cpu_s(*loop_thread), time.monotonic()
            job = await _take(ended, clips)
            wall_s, cpu = time.monotonic() - start, cpu_times(os.getpid()) - before
            loop_s = thread_cpu_s(*loop_thread) - loop_s
            for task in clients:
                task.cancel()
    return StubResult(clips, len(job["differentials"]) + 1, wall_s, cpu, loop_s)


async def _take(ended: asyncio.Queue[dict[str, Any]], count: int) -> dict[str, Any]:
    """Wait until `count` more jobs have ended. Returns the last one."""
    return [await ended.get() for _ in range(count)][-1]


@asynccontextmanager
async def _service(data_dir: Path, slots: int, words: int) -> AsyncIterator[str]:
    """Start Valkey, the gateway and a worker with stub models. Yields the gateway's URL."""
    port, socket_path = free_port(), data_dir / "valkey" / "valkey.sock"
    env = {"REDIS_URL": f"unix://{socket_path}", "DATA_DIR": str(data_dir), "SLOTS": str(slots)}
    stub = {"STUB_STEP_S": str(STEP_S), "STUB_WORDS": str(words), **env}
    data_dir.mkdir(parents=True)
    async with Supervisor(data_dir / LOGS) as supervisor:
        supervisor.start(valkey(data_dir / "valkey", socket_path))
        while not socket_path.exists():
            await asyncio.sleep(0.05)
        supervisor.start(gateway(env, LOCAL_HOST, port))
        supervisor.start(Child("worker", [sys.executable, __file__], stub))
        url = f"http://{LOCAL_HOST}:{port}"
        await supervisor.run(_until_ready(url))
        supervisor.mark_ready()
        yield url


async def _until_ready(url: str) -> None:
    async with asyncio.timeout(READY_TIMEOUT_S), httpx.AsyncClient(base_url=url, trust_env=False) as client:
        while True:
            try:
                (await client.get("/readyz")).raise_for_status()
            except httpx.HTTPError:
                await asyncio.sleep(0.25)
            else:
                return


if __name__ == "__main__":
    sys.exit(work(Settings(), load))
