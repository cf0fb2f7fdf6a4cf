"""`sharecap batch` while its own process, the gateway and workers are killed: each clip is captioned once.

The small size runs with every test run. `SOAK=1` adds 300 drawn clips with the demo model, and 10,000 short clips.
"""

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from sharecap_client.datasets.batch.status import status_of
from sharecap_client.datasets.evaluation.evaluate import judged_figures
from sharecap_client.datasets.evaluation.references import pair, read_references
from sharecap_client.datasets.rows import Row
from sharecap_client.datasets.store import Store

from service.contract.store.keys import JOBS
from service.contract.store.store import Store as JobStore
from service.contract.store.worker_cards import CARD_EVERY_S
from tests.client.datasets.demo_judge import events, relation, write_references
from tests.client.datasets.judge_server import JudgeServer, serving
from tests.client.live_service import work
from tests.conftest import MakeClip
from tests.service.scripted import ScriptedWorker
from tests.soak.cluster import START_TIMEOUT_S, Cluster
from tests.soak.history import check, read_histories
from workers.demo.scenes import make_scene, write_clip

SOAK = pytest.mark.skipif("SOAK" not in os.environ, reason="takes minutes; SOAK=1 runs it")
KILLS = ["command"] * 5 + ["gateway"] * 2 + ["worker"] * 2
MIN_F1 = 0.85
"""The demo model's captions of whole videos name nearly all events, and invent few."""
OPTIONS = ("--keyframes", "interval", "--interval", "1")


@dataclass
class Command:
    """`sharecap batch` in its own process; started again after it was killed."""

    cluster: Cluster
    arguments: list[str]
    log: Path

    def start(self) -> None:
        env = {**os.environ, "SHARECAP_URL": f"127.0.0.1:{self.cluster.port}"}
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "sharecap_client.cli", "batch", "--json", *self.arguments]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=env)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    async def finish(self, timeout_s: float) -> int:
        return await asyncio.to_thread(self.process.wait, timeout_s)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Return the events that all processes have printed; a killed one can leave half a line."""
        events = []
        for line in self.log.read_text().splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if event.get("event") == kind:
                events.append(event)
        return events


@asynccontextmanager
async def running(command: Command) -> AsyncIterator[Command]:
    command.start()
    try:
        yield command
    finally:
        command.kill()


async def accepted(cluster: Cluster) -> int:
    return int(await cluster.redis.zcard(JOBS))


async def kill_all(command: Command, kills: list[str], videos: int, chance: random.Random) -> None:
    """Kill and restart each of `kills`, spread over the run: each after a random number of further jobs."""
    cluster = command.cluster
    for number, victim in enumerate(kills):
        at = (number + chance.uniform(0.1, 0.9)) * videos / (len(kills) + 1)
        while await accepted(cluster) < at:
            await asyncio.sleep(0.02)
        await asyncio.sleep(chance.uniform(0, 0.3))
        if victim == "command":
            command.kill()
            command.start()
        elif victim == "gateway":
            cluster.gateway.kill()
            cluster.gateway.wait()
            await cluster.start_gateway()
        else:
            await cluster.kill_worker(chance.choice(cluster.workers))
            cluster.start_worker()


async def check_all(cluster: Cluster, run: Path, videos: int, *, streams: bool = True) -> list[Row]:
    """Check that the store has each video once, each with its own job, and that the service ran no further jobs.

    With `streams`, also check that no job has captioned a keyframe twice.
    """
    store = Store.open(run)
    rows = list(store.rows())
    assert len({row.id for row in rows}) == len(rows) == videos
    assert sum(map(store.parts.rows_in, store.parts.numbers())) == videos
    jobs = {row.job: len(row.keyframe_times_s) for row in rows if row.job}
    assert await accepted(cluster) == len(jobs) == videos
    if streams:
        check(await read_histories(cluster.store, jobs))
    return rows


async def test_killed_processes_caption_no_clip_twice(
    start: Callable[..., Any], make_clip: MakeClip, tmp_path: Path
) -> None:
    videos, folder, run = 40, tmp_path / "clips", tmp_path / "run"
    folder.mkdir()
    clip = make_clip(tmp_path / "clip.mp4", seconds=2)
    for number in range(videos):
        shutil.copy(clip, folder / f"{number:03}.mp4")
    cluster = await start(2, gateway=True, lease_s=2, word_s=0.02)
    chance = random.Random(1)
    kills = chance.sample(KILLS, len(KILLS))
    command = Command(cluster, [str(folder), "--out", str(run), "--concurrency", "6", *OPTIONS], tmp_path / "batch.log")
    async with running(command):
        await kill_all(command, kills, videos, chance)
        status = await command.finish(90)
    rows = await check_all(cluster, run, videos)
    assert status == 0, command.log.read_text()[-2000:]
    assert {row.caption for row in rows} == {"a few words of it"}


async def test_an_interrupted_command_keeps_what_is_finished(
    start: Callable[..., Any], make_clip: MakeClip, tmp_path: Path
) -> None:
    folder, run = tmp_path / "clips", tmp_path / "run"
    folder.mkdir()
    for number in range(6):
        make_clip(folder / f"{number}.mp4", seconds=1)
    cluster = await start(1, gateway=True, word_s=0.05, slots=1)
    command = Command(cluster, [str(folder), "--out", str(run), "--concurrency", "2", *OPTIONS], tmp_path / "batch.log")
    async with running(command):
        async with asyncio.timeout(START_TIMEOUT_S):
            while not command.events("row"):
                await asyncio.sleep(0.05)
        command.process.send_signal(signal.SIGINT)
        assert await command.finish(30) == 130
        assert Store.open(run).parts.numbers()
        assert any("continues" in event["text"] for event in command.events("note"))
        command.start()
        assert await command.finish(60) == 0
    await check_all(cluster, run, 6)


@dataclass(eq=False)
class Program:
    """A worker with the demo model, with the methods of `multiprocessing.Process` that a cluster uses."""

    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        self.process.kill()

    def join(self, timeout_s: float | None = None) -> None:
        self.process.wait(timeout_s)


class DemoCluster(Cluster):
    """A cluster whose workers run the demo model in the real engine."""

    def start_worker(self) -> Any:
        program: Any = Program(self._start("worker", [sys.executable, "-P", "-m", "workers.main"]))
        self.workers.append(program)
        return program


@SOAK
async def test_the_demo_model_captions_300_clips_through_kills(tmp_path: Path) -> None:
    videos, folder, run = int(os.environ.get("SOAK_CLIPS", "300")), tmp_path / "clips", tmp_path / "run"
    folder.mkdir()
    for seed in range(videos):
        write_clip(folder / f"{seed:03}.mp4", make_scene(seed))
    async with DemoCluster(tmp_path) as cluster:
        await cluster.start_gateway()
        await cluster.start_workers(1)
        chance = random.Random(2)
        kills = chance.sample(KILLS, len(KILLS))
        (folder / "broken.mp4").write_bytes(b"no video" * 1000)
        started = time.monotonic()
        command = Command(cluster, [str(folder), "--out", str(run)], tmp_path / "batch.log")
        async with running(command):
            await kill_all(command, kills, videos, chance)
            assert await command.finish(3000) == 3
            assert status_of(Store.open(run)).failures == {"not_a_video": 1}
            print(f"\n{videos} clips in {time.monotonic() - started:.0f} s; {status_of(Store.open(run)).as_text()}")
            write_clip(folder / "broken.mp4", make_scene(videos))
            command.arguments += ["--retry-failed"]
            command.start()
            assert await command.finish(300) == 0
        rows = await check_all(cluster, run, videos + 1)
    references = tmp_path / "references.jsonl"
    write_references(references, {f"{seed:03}.mp4": make_scene(seed) for seed in range(videos)})
    with serving(JudgeServer(events, relation)) as judge:
        figures = await judged_figures(pair(rows, read_references(references)), judge.url, "demo", tmp_path / "judge")
    print({name: round(value, 3) for name, value in figures.items() if isinstance(value, float)})
    assert figures["f1"] > MIN_F1


async def announce(store: JobStore) -> None:
    """Show the card of a worker, as a worker does, until cancelled."""
    while True:
        await ScriptedWorker(store).show_card()
        await asyncio.sleep(CARD_EVERY_S)


@SOAK
async def test_10000_short_clips(start: Callable[..., Any], make_clip: MakeClip, tmp_path: Path) -> None:
    videos, folder, run = int(os.environ.get("SOAK_SHORT_CLIPS", "10000")), tmp_path / "clips", tmp_path / "run"
    folder.mkdir()
    clip = make_clip(tmp_path / "clip.mp4", seconds=1)
    for number in range(videos):
        (folder / f"{number:05}.mp4").hardlink_to(clip)
    cluster = await start(0, gateway=True)
    background = [  # a worker that captions without opening the videos, at the gateway's speed
        asyncio.create_task(work(cluster.store)),
        asyncio.create_task(announce(cluster.store)),
    ]
    command = Command(cluster, [str(folder), "--out", str(run)], tmp_path / "batch.log")
    sizes: list[float] = []
    async with running(command):
        started = time.monotonic()
        ended = asyncio.create_task(command.finish(3000))
        while not ended.done():
            await asyncio.sleep(2)
            if command.process.poll() is None:
                sizes.append(psutil.Process(command.process.pid).memory_info().rss / 1e6)
        assert await ended == 0
    for task in background:
        task.cancel()
    rate = videos / (time.monotonic() - started)
    quarter = len(sizes) // 4
    print(
        f"\n{videos} clips, {rate:.1f} clips/s, memory {sizes[quarter]:.0f} MB, at the end {sizes[-2]:.0f} MB",
        flush=True,
    )
    (end,) = command.events("end")
    assert (end["total"], end["completed"], end["failed"]) == (videos, videos, 0)
    assert sizes[-2] < sizes[quarter] + 30
    await check_all(cluster, run, videos, streams=False)
