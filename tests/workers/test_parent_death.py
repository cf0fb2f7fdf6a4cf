"""No process of a worker outlives it: killed with SIGKILL while the engine or a decoder starts, or later."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from redis import Redis

from service.contract.store.worker_cards import CARD_TTL_S
from workers.settings import DEMO_CHECKPOINT

END_WITHIN_S = 2.0
START_TIMEOUT_S = 400
ENGINE = re.compile("EngineCore|spawn_main")

FAMILY = """
import multiprocessing, subprocess, sys, time

def child(depth):
    if depth:
        multiprocessing.Process(target=child, args=(depth - 1,)).start()
    print("up", flush=True)
    time.sleep(600)

if __name__ == "__main__":
    from workers.parent_death import set_up_worker
    set_up_worker()
    multiprocessing.set_start_method(sys.argv[1])
    multiprocessing.Process(target=child, args=(1,)).start()
    time.sleep(600)
elif __name__ == "__mp_main__":
    from workers.parent_death import set_up_spawned_child
    set_up_spawned_child()
"""

DECODING = """
import asyncio, sys
from pathlib import Path
from service.contract.sandbox.probe import VideoInfo
from workers.video.frames import DecodeLimits, Part, open_frames

async def main():
    info = VideoInfo(container="mov", codec="h264", width=160, height=120)
    async with open_frames(Path(sys.argv[1]), info, Part(interval_s=1.0, max_samples=10), DecodeLimits()):
        pass

asyncio.run(main())
"""


def kill_and_check(process: psutil.Popen) -> None:
    """Kill `process` and assert that none of its descendants is left after `END_WITHIN_S`."""
    family = process.children(recursive=True)
    assert family
    process.kill()
    process.wait(10)
    left = psutil.wait_procs(family, timeout=END_WITHIN_S)[1]
    names = [other.name() for other in left if other.is_running() and other.status() != psutil.STATUS_ZOMBIE]
    for other in left:
        other.kill()
    assert names == []


def engines(process: psutil.Popen) -> list[psutil.Process]:
    """Return the engine processes: forked ones by their title, spawned ones by their command as well."""
    return [child for child in process.children(recursive=True) if ENGINE.search(" ".join(child.cmdline()))]


def wait_for(condition: Callable[[], object], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.05)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_and_grandchildren_end_with_a_killed_parent(tmp_path: Path, method: str) -> None:
    script = tmp_path / "family.py"
    script.write_text(FAMILY)
    env = os.environ | {"PYTHONPATH": str(Path.cwd())}
    with (output := tmp_path / "output").open("w") as out:
        process = psutil.Popen([sys.executable, str(script), method], env=env, stdout=out)
    wait_for(lambda: output.read_text().count("up") == 2, 30)
    kill_and_check(process)


@pytest.mark.parametrize("method", [pytest.param("fork", marks=pytest.mark.gpu), "spawn"])  # vLLM spawns on a CPU
@pytest.mark.parametrize("ready", [False, True], ids=["starting", "ready"])
def test_the_engine_ends_with_a_killed_worker(redis_url: str, tmp_path: Path, method: str, ready: bool) -> None:
    if not (DEMO_CHECKPOINT / "config.json").exists():
        pytest.skip("the demo model is not built")
    log = tmp_path / "worker.log"
    env = os.environ | {
        "REDIS_URL": redis_url,
        "DATA_DIR": str(tmp_path / "data"),
        "VLLM_WORKER_MULTIPROC_METHOD": method,
    }
    with log.open("w") as out:
        process = psutil.Popen([sys.executable, "-m", "workers.main"], env=env, stdout=out, stderr=subprocess.STDOUT)

    def started() -> bool:
        assert process.poll() is None, log.read_text()
        return "ready:" in log.read_text() if ready else bool(engines(process))

    wait_for(started, START_TIMEOUT_S)
    kill_and_check(process)
    with Redis.from_url(redis_url) as redis:
        wait_for(lambda: not redis.keys("sharecap:worker:*"), CARD_TTL_S)


@pytest.mark.parametrize("after_s", [0, 0.1, 0.3, 0.6, 2])
def test_a_decoder_ends_with_a_killed_worker_at_any_time(tmp_path: Path, after_s: float) -> None:
    """Opening the pipe blocks, so this decoder never ends by itself."""
    os.mkfifo(pipe := tmp_path / "video.mp4")
    with psutil.Popen([sys.executable, "-c", DECODING, str(pipe)]) as process:
        wait_for(process.children, 30)
        time.sleep(after_s)
        kill_and_check(process)
