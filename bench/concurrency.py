"""What many videos at once gain over one at a time, in one run against one service.

    python bench/concurrency.py                    starts `sharecap up` with the demo model, and stops it
    python bench/concurrency.py --url http://…     measures a service that is running
    python bench/concurrency.py --video FILE       with a video of one's own

Ten videos go through twice: one after the other, each posted when the one before has ended, then all posted at once.
Prints videos, keyframes and generated tokens a second for both, and the gain; the exit status is 1 where it is below
`--least`.
"""

import argparse
import asyncio
import contextlib
import os
import platform
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from httpx_sse import aconnect_sse

from service.local.up import UpSettings, free_port, running
from workers.demo import scenes, world

JOB_TIMEOUT_S = 1800


@dataclass(frozen=True)
class Round:
    """All videos, one way. `wall_s` from the first post to the last end."""

    name: str
    wall_s: float
    jobs: list[dict[str, Any]]

    def row(self) -> str:
        keyframes = sum(len(job["differentials"]) for job in self.jobs)
        tokens = sum(job["usage"]["completion_tokens"] for job in self.jobs)
        rates = [count / self.wall_s for count in (len(self.jobs), keyframes, tokens)]
        return f"{self.name:<16}{self.wall_s:>9.1f}" + "".join(f"{rate:>14.2f}" for rate in rates)


async def caption(http: httpx.AsyncClient, video: Path) -> dict[str, Any]:
    """Post the video, follow its events to the last, return the job."""
    files = {"file": (video.name, video.read_bytes())}
    posted = (await http.post("/captions", files=files, data={"keyframes": "interval"})).raise_for_status().json()
    async with aconnect_sse(http, "GET", f"/captions/{posted['id']}/events") as events:
        async for _ in events.aiter_sse():
            pass
    job: dict[str, Any] = (await http.get(f"/captions/{posted['id']}")).raise_for_status().json()
    if job["status"] != "completed":
        raise SystemExit(f"{video.name}: {job['status']}: {job.get('error')}")
    return job


async def one_at_a_time(http: httpx.AsyncClient, videos: list[Path]) -> Round:
    start = time.monotonic()
    jobs = [await caption(http, video) for video in videos]
    return Round("one at a time", time.monotonic() - start, jobs)


async def all_at_once(http: httpx.AsyncClient, videos: list[Path]) -> Round:
    start = time.monotonic()
    jobs = await asyncio.gather(*(caption(http, video) for video in videos))
    return Round("all at once", time.monotonic() - start, list(jobs))


@asynccontextmanager
async def service(url: str | None, directory: Path, slots: int) -> AsyncIterator[str]:
    if url is not None:
        yield url
        return
    os.environ["SLOTS"] = str(slots)
    settings = UpSettings(data_dir=directory / "data", port=free_port())
    async with running(settings):
        yield settings.url


def demo_videos(directory: Path, count: int) -> list[Path]:
    """Draw `count` different clips of the demo model's world."""
    paths = []
    for k in range(count):
        path = directory / f"clip-{k}.mp4"
        scenes.write_clip(path, scenes.make_scene(world.HELD_OUT_SEED + k))
        paths.append(path)
    return paths


async def measure(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        videos = [options.video] * options.videos if options.video else demo_videos(directory, options.videos)
        async with (
            service(options.url, directory, options.slots) as url,
            httpx.AsyncClient(base_url=url, timeout=JOB_TIMEOUT_S, trust_env=False) as http,
        ):
            await caption(http, videos[0])  # so that neither round pays for what happens only once
            rounds = [await one_at_a_time(http, videos), await all_at_once(http, videos)]
    for one, other in zip(rounds[0].jobs, rounds[1].jobs, strict=True):
        if one["differentials"] != other["differentials"] or one["caption"] != other["caption"]:
            print(f"different words for the same video: {one['id']}, {other['id']}")
    gain = rounds[0].wall_s / rounds[1].wall_s
    print(f"{options.videos} videos, {platform.machine()}, {os.cpu_count()} processors, {time.strftime('%Y-%m-%d')}")
    print(f"{'':<16}{'seconds':>9}{'videos/s':>14}{'keyframes/s':>14}{'tokens/s':>14}")
    for one in rounds:
        print(one.row())
    print(f"gain: {gain:.2f}")
    return 0 if gain >= options.least else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="of a running service; without it one is started")
    parser.add_argument("--video", type=Path, help="caption this file instead of drawn clips")
    parser.add_argument("--videos", type=int, default=10)
    parser.add_argument("--slots", type=int, default=10, help="SLOTS of the service that is started")
    parser.add_argument("--least", type=float, default=2.0, help="the gain below which the exit status is 1")
    with contextlib.suppress(KeyboardInterrupt):
        return asyncio.run(measure(parser.parse_args()))
    return 130


if __name__ == "__main__":
    sys.exit(main())
