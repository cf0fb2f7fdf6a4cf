"""Time to caption a long video with its shots in parallel, compared with one chain on the same service.

    python bench/shot_parallel.py                  starts `sharecap up` with the demo model, and stops it afterwards
    python bench/shot_parallel.py --shots 6        a shorter clip

Draws a clip of thirty shots of twenty seconds each from the demo world. Each shot is a still scene, because the demo
model's encoder takes any change for a cut. The clip is captioned twice, with a keyframe every two seconds and the same
options except `parallel`. Prints the time from the post to the first differential, to the last differential and to the
end. The exit status is 1 if the parallel run takes longer.
"""

import argparse
import asyncio
import contextlib
import os
import platform
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from httpx_sse import aconnect_sse

from service.local.up import UpSettings, free_port, local_service
from workers.demo import scenes, world

JOB_TIMEOUT_S = 3600
SIZE = (426, 240)
SHOT_S = 20.0
OPTIONS = {"keyframes": "interval", "max_tokens": "64"}


@dataclass(frozen=True)
class Run:
    """One job, with the seconds from its post to the first and last differential and to its end."""

    name: str
    first_s: float
    last_s: float
    wall_s: float
    job: dict[str, Any]

    def row(self) -> str:
        """Return the printed line."""
        shots = 1 + max(keyframe["shot"] for keyframe in self.job["keyframes"])
        counts = f"{shots:>7}{len(self.job['differentials']):>14}{self.job['usage']['completion_tokens']:>9}"
        return f"{self.name:<14}{counts}{self.first_s:>10.1f}{self.last_s:>10.1f}{self.wall_s:>10.1f}"


def draw(path: Path, shots: int) -> None:
    """Write the clip. Each shot shows one still shape, different from its neighbours in shape and colours."""
    pairs = [(colour, ground) for colour in world.COLOURS for ground in world.BACKGROUNDS]
    states = []
    for shot in range(shots):
        colour, ground = pairs[shot * 11 % len(pairs)]
        shape = world.SHAPES[shot % len(world.SHAPES)]
        states.append(world.State(shape, colour, ground, x=0.3 + 0.1 * (shot % 5), radius=0.36))
    changes = ("background",) * (shots - 1)
    scenes.write_clip(path, world.Scene(0, *SIZE, tuple(states), changes, (SHOT_S,) * shots), fps=5)


async def caption(http: httpx.AsyncClient, video: Path, name: str, **options: str) -> Run:
    """Post the video, follow its events to the last one, and return the measured run."""
    start, differentials_s = time.monotonic(), []
    files = {"file": (video.name, video.read_bytes())}
    posted = (await http.post("/captions", files=files, data=OPTIONS | options)).raise_for_status().json()
    async with aconnect_sse(http, "GET", f"/captions/{posted['id']}/events") as events:
        async for event in events.aiter_sse():
            if event.event == "differential":
                differentials_s.append(time.monotonic() - start)
    wall_s = time.monotonic() - start
    job: dict[str, Any] = (await http.get(f"/captions/{posted['id']}")).raise_for_status().json()
    if job["status"] != "completed":
        raise SystemExit(f"{job['status']}: {job.get('error')}")
    return Run(name, differentials_s[0], differentials_s[-1], wall_s, job)


async def measure(options: argparse.Namespace) -> int:
    """Caption the clip both ways, print the table, and return the exit status."""
    with tempfile.TemporaryDirectory() as name:
        video = Path(name, "shots.mp4")
        draw(video, options.shots)
        os.environ["CHAINS"] = str(options.chains)
        settings = UpSettings(data_dir=Path(name, "data"), port=free_port())
        async with (
            local_service(settings),
            httpx.AsyncClient(base_url=settings.url, timeout=JOB_TIMEOUT_S, trust_env=False) as http,
        ):
            await caption(http, video, "", end_s="8")  # warm-up: work done only once must not count in either run
            runs = [await caption(http, video, "one chain"), await caption(http, video, "parallel", parallel="true")]
    machine = f"{platform.machine()}, {os.cpu_count()} CPU cores, {time.strftime('%Y-%m-%d')}"
    print(f"{options.shots} shots of {SHOT_S:g} s, at most {options.chains} chains; {machine}")
    print(f"{'':<14}{'shots':>7}{'differentials':>14}{'tokens':>9}{'first s':>10}{'last s':>10}{'end s':>10}")
    for run in runs:
        print(run.row())
    gain = runs[0].wall_s / runs[1].wall_s
    print(f"gain: {gain:.2f}")
    return 0 if gain >= 1 else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shots", type=int, default=30, help="number of shots in the clip")
    parser.add_argument("--chains", type=int, default=16, help="CHAINS of the service it starts")
    with contextlib.suppress(KeyboardInterrupt):
        return asyncio.run(measure(parser.parse_args()))
    return 130


if __name__ == "__main__":
    sys.exit(main())
