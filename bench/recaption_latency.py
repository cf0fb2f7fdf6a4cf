"""Time of a recaption while the workers are full of videos, compared with an idle service.

    python bench/recaption_latency.py              starts `sharecap up` with the demo model, and stops it afterwards
    python bench/recaption_latency.py --videos 8 --recaptions 10      a smoke test

Sends recaptions one after another to the idle service, then posts the videos and sends recaptions until either all
`--recaptions` are answered or the videos have ended. Prints median and 95th percentile of both rounds, and how many
differentials the videos completed per second meanwhile. The exit status is 1 if the 95th percentile grows more than
`--most` times.
"""

import argparse
import asyncio
import contextlib
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from service.local.up import UpSettings, free_port, local_service
from workers.demo import scenes

TIMEOUT_S = 600
PROMPT = "a red star that moves right and turns cyan"
"""One prompt for all, because the length of the answer decides most of the time."""
PAUSE_S = 0.2


@dataclass(frozen=True)
class Round:
    """The seconds that each recaption of a round took."""

    name: str
    seconds: list[float]

    @property
    def p95(self) -> float:
        return sorted(self.seconds)[max(0, -(-len(self.seconds) * 95 // 100) - 1)]

    def row(self) -> str:
        """Return the printed line."""
        median = statistics.median(self.seconds)
        return f"{self.name:<16}{len(self.seconds):>12}{median:>12.3f}{self.p95:>12.3f}{max(self.seconds):>12.3f}"


async def recaption(http: httpx.AsyncClient) -> float:
    """Return the seconds until the caption has arrived."""
    start = time.monotonic()
    answer = (await http.post("/recaption", json={"prompt": PROMPT})).raise_for_status()
    if answer.status_code != 200:
        raise SystemExit(f"no caption in time: {answer.text}")
    return time.monotonic() - start


async def recaptions(http: httpx.AsyncClient, name: str, count: int, videos: list[str]) -> Round:
    """Send recaptions one after another, at most until the `videos` have ended."""
    seconds: list[float] = []
    while len(seconds) < count and (not videos or await unfinished(http, videos[-1])):
        seconds.append(await recaption(http))
        await asyncio.sleep(PAUSE_S)
    return Round(name, seconds)


async def unfinished(http: httpx.AsyncClient, video: str) -> bool:
    job: dict[str, Any] = (await http.get(f"/captions/{video}")).raise_for_status().json()
    return job["status"] in ("queued", "running")


async def differentials(http: httpx.AsyncClient, videos: list[str]) -> int:
    """Return how many differential captions the videos have."""
    jobs = [(await http.get(f"/captions/{video}")).raise_for_status().json() for video in videos]
    return sum(len(job["differentials"]) for job in jobs)


async def post(http: httpx.AsyncClient, clip: bytes) -> str:
    posted = await http.post("/captions", files={"file": ("clip.mp4", clip)}, data={"keyframes": "interval"})
    return str(posted.raise_for_status().json()["id"])


async def measure(options: argparse.Namespace) -> int:
    """Run both rounds, print the table, and return the exit status."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "clip.mp4")
        scenes.write_clip(path, scenes.sample_clip())
        settings = UpSettings(data_dir=Path(name, "data"), port=free_port())
        async with (
            local_service(settings),
            httpx.AsyncClient(base_url=settings.url, timeout=TIMEOUT_S, trust_env=False) as http,
        ):
            await recaptions(http, "warm-up", 3, [])
            idle = await recaptions(http, "idle", options.recaptions, [])
            videos = [await post(http, path.read_bytes()) for _ in range(options.videos)]
            await asyncio.sleep(options.settle_s)
            before, start = await differentials(http, videos), time.monotonic()
            busy = await recaptions(http, "behind videos", options.recaptions, videos)
            rate = (await differentials(http, videos) - before) / (time.monotonic() - start)
    print(f"{options.videos} videos; {platform.machine()}, {os.cpu_count()} CPU cores, {time.strftime('%Y-%m-%d')}")
    print(f"{'':<16}{'recaptions':>12}{'median s':>12}{'p95 s':>12}{'longest s':>12}")
    for round_ in (idle, busy):
        print(round_.row())
    print(f"differentials per second meanwhile: {rate:.2f}")
    print(f"p95 behind videos / p95 idle: {busy.p95 / idle.p95:.2f}")
    return 0 if busy.p95 <= options.most * idle.p95 else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=100, help="number of videos posted before the second round")
    parser.add_argument("--recaptions", type=int, default=60, help="number of recaptions in each round")
    parser.add_argument("--settle-s", type=float, default=5.0, help="seconds between the posts and the second round")
    parser.add_argument("--most", type=float, default=4.0, help="largest growth of the p95 for exit status 0")
    with contextlib.suppress(KeyboardInterrupt):
        return asyncio.run(measure(parser.parse_args()))
    return 130


if __name__ == "__main__":
    sys.exit(main())
