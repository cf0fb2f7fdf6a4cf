"""Throughput of captioning many videos concurrently, compared with one at a time on the same service.

    python bench/concurrency.py                    starts `sharecap up` with the demo model, and stops it afterwards
    python bench/concurrency.py --url http://…     measures a running service
    python bench/concurrency.py --video FILE       uses your own video

Ten videos are captioned twice: first sequentially, each posted after the previous one has ended, then all posted at
once. Prints videos, keyframes and generated tokens per second for both, and the gain. The exit status is 1 if the gain
is below `--least`.
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

from service.local.up import UpSettings, free_port, local_service
from workers.demo import scenes, world

JOB_TIMEOUT_S = 1800


@dataclass(frozen=True)
class Round:
    """One round over all videos. `wall_s` runs from the first post to the end of the last job."""

    name: str
    wall_s: float
    jobs: list[dict[str, Any]]

    def row(self) -> str:
        """Return the printed line: seconds, then videos, keyframes and tokens per second."""
        keyframes = sum(len(job["differentials"]) for job in self.jobs)
        tokens = sum(job["usage"]["completion_tokens"] for job in self.jobs)
        rates = [count / self.wall_s for count in (len(self.jobs), keyframes, tokens)]
        return f"{self.name:<16}{self.wall_s:>9.1f}" + "".join(f"{rate:>14.2f}" for rate in rates)


async def caption(http: httpx.AsyncClient, video: Path, **options: str) -> dict[str, Any]:
    """Post the video with these options and wait for its last event. Returns the finished job."""
    files = {"file": (video.name, video.read_bytes())}
    data = {"keyframes": "interval", **options}
    posted = (await http.post("/captions", files=files, data=data)).raise_for_status().json()
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
async def service_url(url: str | None, directory: Path, slots: int) -> AsyncIterator[str]:
    """Yield the URL of the service to measure. Starts one with the demo model if `url` is None."""
    if url is not None:
        yield url
        return
    os.environ["SLOTS"] = str(slots)
    settings = UpSettings(data_dir=directory / "data", port=free_port())
    async with local_service(settings):
        yield settings.url


def demo_videos(directory: Path, count: int) -> list[Path]:
    """Draw `count` different clips of the demo world and return their paths."""
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
            service_url(options.url, directory, options.slots) as url,
            httpx.AsyncClient(base_url=url, timeout=JOB_TIMEOUT_S, trust_env=False) as http,
        ):
            await caption(http, videos[0])  # warm-up: work done only once must not count in either round
            rounds = [await one_at_a_time(http, videos), await all_at_once(http, videos)]
    for first, second in zip(rounds[0].jobs, rounds[1].jobs, strict=True):
        if first["differentials"] != second["differentials"] or first["caption"] != second["caption"]:
            print(f"different captions for the same video: {first['id']}, {second['id']}")
    gain = rounds[0].wall_s / rounds[1].wall_s
    print(f"{options.videos} videos, {platform.machine()}, {os.cpu_count()} CPU cores, {time.strftime('%Y-%m-%d')}")
    print(f"{'':<16}{'seconds':>9}{'videos/s':>14}{'keyframes/s':>14}{'tokens/s':>14}")
    for round_ in rounds:
        print(round_.row())
    print(f"gain: {gain:.2f}")
    return 0 if gain >= options.least else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="URL of a running service; the default starts one")
    parser.add_argument("--video", type=Path, help="caption this file instead of drawn clips")
    parser.add_argument("--videos", type=int, default=10, help="number of videos")
    parser.add_argument("--slots", type=int, default=10, help="SLOTS of the service it starts")
    parser.add_argument("--least", type=float, default=2.0, help="smallest gain for exit status 0")
    with contextlib.suppress(KeyboardInterrupt):
        return asyncio.run(measure(parser.parse_args()))
    return 130


if __name__ == "__main__":
    sys.exit(main())
