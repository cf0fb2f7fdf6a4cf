"""How true the demo model's captions are on held-out clips, through the whole service: upload, decode, keyframes, vLLM.

    python bench/demo_quality.py                       # starts the service itself, 500 clips
    python bench/demo_quality.py --url http://127.0.0.1:8000 --clips 50

Each clip is drawn from a seed that is never trained on, written as H.264, posted, and its captions are read back
(`workers/demo/language.py`). Prints a table and writes it, with machine and date, to bench/results/demo_quality.md.
"""

import argparse
import asyncio
import os
import platform
import random
import re
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

from sharecap_client.api import AsyncClient
from sharecap_client.models import Job
from tqdm.asyncio import tqdm  # type: ignore[import-untyped]

from service.contract.events import Caption, Failed
from service.contract.jobs import JobStatus
from service.local.up import UpSettings, free_port, running
from workers.demo import language, scenes, world
from workers.demo.training import samples
from workers.demo.world import Scene

SEED = world.HELD_OUT_SEED + 1_000_000  # apart from the held-out pictures that training watches
STEP_S = 2.0  # default sampling interval of the service
RESULTS = Path(__file__).parent / "results" / "demo_quality.md"

Tally = Counter[str]  # "what: right" and "what: all"


def count(tally: Tally, what: str, right: bool) -> None:
    tally[f"{what}: right"] += right
    tally[f"{what}: all"] += 1


def told_changes(text: str) -> list[tuple[str, str | None]]:
    """Return `(change, shape)` of each sentence that tells a change, in order."""
    sentences = [(language.read_change(s), language.read_thing(s)[0]) for s in re.split(r"(?<=\.)\s+", text)]
    return [(kind, shape) for kind, shape in sentences if kind not in (None, "none")]


def true_changes(scene: Scene, after_s: float, until_s: float) -> list[tuple[str, str | None]]:
    """Return `(change, shape)` of each change in `(after_s, until_s]`."""
    steps = zip(scene.change_times_s(), scene.changes, scene.states, scene.states[1:], strict=False)
    return [(kind, a.shape or b.shape) for time_s, kind, a, b in steps if after_s < time_s <= until_s]


def judge_video(scene: Scene, job: Job, tally: Tally) -> None:
    """Count what one finished job says right about its scene."""
    start, times_s = scene.states[0], [keyframe.time_s for keyframe in job.keyframes]
    first = job.differentials[0].text
    count(tally, "first frame: shape and colour", language.read_thing(first) == (start.shape, start.colour))
    count(tally, "first frame: background", language.read_background(first) == start.background)
    hits = [any(t <= k <= t + STEP_S for k in times_s) for t in scene.change_times_s()]
    count(tally, "keyframes: every change within one step", all(hits))
    count(tally, "keyframes: none without a change, the last apart", len(times_s[:-1]) <= len(scene.changes) + 1)
    for before_s, time_s, said in zip(times_s, times_s[1:], job.differentials[1:], strict=False):
        happened = true_changes(scene, before_s, time_s) or [("none", None)]
        kind, shape = language.read_change(said.text), language.read_thing(said.text)[0]
        right_kind = len(happened) == 1 and kind == happened[0][0]
        right_shape = happened[0][1] in (None, shape)
        count(tally, "differential: right change", right_kind)
        count(tally, "differential: right change and shape", right_kind and right_shape)
        count(tally, f"differential, {happened[0][0]}: right change and shape", right_kind and right_shape)
    said_all = told_changes(job.caption or "")
    count(tally, "summary: all changes in order", said_all == true_changes(scene, 0.0, float("inf")))
    as_told = [told for d in job.differentials[1:] for told in told_changes(d.text)]
    count(tally, "summary: what the differentials said, in order", said_all == as_told)


async def judge_clip(client: AsyncClient, seed: int, folder: Path, tally: Tally) -> None:
    scene, path = scenes.make_scene(seed), folder / f"{seed}.mp4"
    await asyncio.to_thread(scenes.write_clip, path, scene)
    with path.open("rb") as video:
        job_id = await client.submit_file(video, path.name, {"keyframes": "semantic"})
    path.unlink()
    async for _ in client.follow(job_id):
        pass
    job = await client.job(job_id)
    count(tally, "jobs completed", job.status is JobStatus.COMPLETED)
    if job.status is JobStatus.COMPLETED:
        judge_video(scene, job, tally)


async def judge_recaption(client: AsyncClient, seed: int, tally: Tally) -> None:
    prompt, wanted = samples.recaption(random.Random(seed))
    brief = prompt.split("caption: ", 1)[1]
    text = ""
    async for event in client.follow(await client.submit_recaption(brief)):
        match event:
            case Caption():
                text = event.text
            case Failed():
                text = ""
    kept = language.read_thing(text) == language.read_thing(wanted) and told_changes(text) == told_changes(wanted)
    kept = kept and language.read_background(text) == language.read_background(wanted)
    count(tally, "recaption: keeps every attribute", kept)


async def judge_all(url: str, clips: int, at_once: int) -> Tally:
    """Judge `clips` videos and as many recaptions, `at_once` jobs at the same time."""
    tally: Tally = Counter()
    gate = asyncio.Semaphore(at_once)

    async with AsyncClient(url) as client:
        with tempfile.TemporaryDirectory() as folder:

            async def video(seed: int) -> None:
                async with gate:
                    await judge_clip(client, seed, Path(folder), tally)

            async def recaption(seed: int) -> None:
                async with gate:
                    await judge_recaption(client, seed, tally)

            await tqdm.gather(*(video(SEED + k) for k in range(clips)), desc="clips")
            await tqdm.gather(*(recaption(SEED + k) for k in range(clips)), desc="recaptions")
    return tally


def table(tally: Tally) -> str:
    """Return the tally as a markdown table, in the order in which things are read."""
    order = ("jobs", "keyframes", "first", "differential:", "summary", "recaption", "differential,")
    names = {key.rsplit(": ", 1)[0] for key in tally}
    lines = ["| what | right | of | share |", "|---|---:|---:|---:|"]
    for name in sorted(names, key=lambda n: (next(i for i, o in enumerate(order) if n.startswith(o)), n)):
        right, total = tally[f"{name}: right"], tally[f"{name}: all"]
        lines.append(f"| {name} | {right} | {total} | {right / total:.1%} |")
    return "\n".join(lines)


@asynccontextmanager
async def service(url: str | None) -> AsyncIterator[str]:
    """Yield the address of the given service, or of one that runs until the end of the block."""
    if url:
        yield url
        return
    with tempfile.TemporaryDirectory() as folder:
        settings = UpSettings(data_dir=Path(folder), port=free_port())
        async with running(settings):
            yield settings.url


async def run(url: str | None, clips: int, at_once: int) -> str:
    """Return the report."""
    async with service(url) as address:
        begun = monotonic()
        tally = await judge_all(address, clips, at_once)
        took_s = monotonic() - begun
    return (
        f"# Demo model: quality through the service\n\n"
        f"`python bench/demo_quality.py --clips {clips} --at-once {at_once}`, {datetime.now(UTC):%Y-%m-%d}, "
        f"{os.cpu_count()} cores ({platform.machine()}), {took_s:.0f} s.\n"
        f"Held-out seeds from {SEED}, semantic keyframes.\n\n"
        f"{table(tally)}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a running service (default: start one with the demo model)")
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--at-once", type=int, default=8, help="jobs at the same time")
    arguments = parser.parse_args()
    report = asyncio.run(run(arguments.url, arguments.clips, arguments.at_once))
    print(report)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(report)


if __name__ == "__main__":
    main()
