"""Quality of the demo model's captions on held-out clips, through the whole service: upload, decode, keyframes, vLLM.

    python bench/demo_quality.py                                # starts the service itself, 500 clips
    python bench/demo_quality.py --url http://127.0.0.1:8000 --clips 50 --ways sliding fast

Each clip is drawn from a seed that training never uses, written as H.264 and posted. Its captions are read back with
`workers/demo/language.py` and compared with the scene. The script prints a table and writes it, with machine and date,
to bench/results/demo_quality.md or to `--out`.

Ways of captioning: `sliding` (one crop per image, then a part of the video as a clip), `two crops` (sliding with
`hd_num` 2), `shots` (`parallel`), `fast`, and `recaption`.
"""

import argparse
import asyncio
import os
import platform
import random
import re
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from time import monotonic

from sharecap_client.api import AsyncClient
from sharecap_client.models import DifferentialCaption, Job, JobStatus
from tqdm.asyncio import tqdm  # type: ignore[import-untyped]

from service.local.up import UpSettings, free_port, local_service
from workers.demo import examples, language, scenes, world
from workers.demo.world import Scene

FIRST_SEED = world.HELD_OUT_SEED + 1_000_000  # differs from the held-out pictures that training evaluates
INTERVAL_S = 2.0  # the service's default sampling interval
RESULTS = Path(__file__).parent / "results" / "demo_quality.md"
OPTIONS: dict[str, Mapping[str, object]] = {
    "sliding": {},
    "two crops": {"hd_num": 2},
    "shots": {"parallel": "true"},
    "fast": {"mode": "fast"},
}
WAYS = (*OPTIONS, "recaption")

Change = tuple[str, str | None]
"""A kind of change, and the shape that changes."""


class Tally:
    """Counts of right results and of all results, by name, in the order of their first use."""

    def __init__(self) -> None:
        self.right: Counter[str] = Counter()
        self.total: Counter[str] = Counter()

    def count(self, name: str, right: bool) -> None:
        self.right[name] += right
        self.total[name] += 1

    def table(self) -> str:
        """Return a markdown table, with the results of each way of captioning together."""
        lines = ["| result | right | of | share |", "|---|---:|---:|---:|"]
        for name in sorted(self.total, key=lambda name: WAYS.index(name.split(":")[0])):
            right, total = self.right[name], self.total[name]
            lines.append(f"| {name} | {right} | {total} | {right / total:.1%} |")
        return "\n".join(lines)


def stated_changes(text: str) -> list[Change]:
    """Return the changes that a caption states, in order."""
    sentences = [(language.read_change(s), language.read_thing(s)[0]) for s in re.split(r"(?<=\.)\s+", text)]
    return [(kind, shape) for kind, shape in sentences if kind not in (None, "none")]


def all_stated_changes(differentials: Sequence[DifferentialCaption]) -> list[Change]:
    return [change for differential in differentials for change in stated_changes(differential.text)]


def true_changes(scene: Scene, after_s: float = 0.0, until_s: float = float("inf")) -> list[Change]:
    """Return the scene's changes in `(after_s, until_s]`."""
    steps = zip(scene.change_times_s(), scene.changes, scene.states, scene.states[1:], strict=False)
    return [(kind, a.shape or b.shape) for time_s, kind, a, b in steps if after_s < time_s <= until_s]


def judge_keyframes(scene: Scene, job: Job, tally: Tally) -> None:
    times_s = [keyframe.time_s for keyframe in job.keyframes]
    hits = [any(t <= k <= t + INTERVAL_S for k in times_s) for t in scene.change_times_s()]
    tally.count("sliding: keyframes within one interval after every change", all(hits))
    few = len(times_s[:-1]) <= len(scene.changes) + 1
    tally.count("sliding: no keyframe without a change, apart from the last", few)


def judge_first_frame(scene: Scene, differential: DifferentialCaption, way: str, tally: Tally) -> None:
    """Count what a description of a single frame says about the state at its time."""
    index = sum(time_s <= differential.time_s for time_s in scene.change_times_s())
    state, text = scene.states[index], differential.text
    thing = (state.shape, state.colour if state.shape else None)
    tally.count(f"{way}: first frame, shape and colour", language.read_thing(text) == thing)
    tally.count(f"{way}: first frame, background", language.read_background(text) == state.background)


def judge_differential(scene: Scene, after_s: float, differential: DifferentialCaption, way: str, tally: Tally) -> None:
    happened = true_changes(scene, after_s, differential.time_s) or [("none", None)]
    (true_kind, true_shape), text = happened[0], differential.text
    right = len(happened) == 1 and language.read_change(text) == true_kind
    right = right and true_shape in (None, language.read_thing(text)[0])
    tally.count(f"{way}: differential, change and shape", right)
    if way == "sliding":
        tally.count(f"{way}: differential of kind {true_kind}, change and shape", right)


def judge_sliding(scene: Scene, job: Job, way: str, tally: Tally) -> None:
    """Count what the differentials and the caption say. The first differential of a shot describes its first frame."""
    shots = {keyframe.index: keyframe.shot for keyframe in job.keyframes}
    judge_first_frame(scene, job.differentials[0], way, tally)
    for before, differential in pairwise(job.differentials):
        if shots[before.keyframe] == shots[differential.keyframe]:
            judge_differential(scene, before.time_s, differential, way, tally)
        else:
            judge_first_frame(scene, differential, way, tally)
    caption = stated_changes(job.caption or "")
    stated = all_stated_changes(job.differentials[1:])
    tally.count(f"{way}: caption, the differentials' changes in order", caption == stated)
    if way != "shots":  # a shot's first frame shows no change
        tally.count(f"{way}: caption, all true changes in order", caption == true_changes(scene))


def judge_fast(scene: Scene, job: Job, tally: Tally) -> None:
    start, caption = scene.states[0], job.caption or ""
    opening = language.read_thing(caption) == (start.shape, start.colour)
    changes = stated_changes(caption) == true_changes(scene)
    tally.count("fast: caption, first frame's shape and colour", opening)
    tally.count("fast: caption, all true changes in order", changes)
    tally.count("fast: caption, both", opening and changes)


async def judge_clip_of(client: AsyncClient, job: Job, tally: Tally) -> None:
    """Caption the part from the second keyframe to the last but one, and count what its caption repeats."""
    differentials = job.differentials[1:-1]
    if len(differentials) < 2:
        return
    submitted = await client.clip(job.id, differentials[0].time_s, differentials[-1].time_s)
    clip = await submitted.wait(check=False)
    right = stated_changes(clip.caption or "") == all_stated_changes(differentials)
    tally.count("sliding: caption of a part, the differentials' changes in order", right)


async def judge_video(client: AsyncClient, seed: int, way: str, folder: Path, tally: Tally) -> None:
    scene, path = scenes.make_scene(seed), folder / f"{way}-{seed}.mp4"
    await asyncio.to_thread(scenes.write_clip, path, scene)
    submitted = await client.caption(path, keyframes="semantic", **OPTIONS[way])
    path.unlink()
    job = await submitted.wait(check=False)
    tally.count(f"{way}: jobs completed", job.status is JobStatus.COMPLETED)
    if job.status is not JobStatus.COMPLETED:
        return
    if way == "fast":
        judge_fast(scene, job, tally)
        return
    judge_sliding(scene, job, way, tally)
    if way == "sliding":
        judge_keyframes(scene, job, tally)
        await judge_clip_of(client, job, tally)


async def judge_recaption(client: AsyncClient, seed: int, tally: Tally) -> None:
    prompt, expected = examples.recaption(random.Random(seed))
    brief = prompt.split("caption: ", 1)[1]
    text = (await (await client.recaption(brief)).wait(check=False)).caption or ""
    right = language.read_thing(text) == language.read_thing(expected)
    right = right and language.read_background(text) == language.read_background(expected)
    right = right and stated_changes(text) == stated_changes(expected)
    tally.count("recaption: every attribute of the prompt", right)


async def judge_all(url: str, ways: Sequence[str], clips: int, concurrency: int) -> Tally:
    """Judge `clips` held-out seeds in each way, with `concurrency` jobs at a time."""
    tally, gate = Tally(), asyncio.Semaphore(concurrency)
    async with AsyncClient(url) as client:
        with tempfile.TemporaryDirectory() as folder:

            async def judge(way: str, seed: int) -> None:
                async with gate:
                    if way == "recaption":
                        await judge_recaption(client, seed, tally)
                    else:
                        await judge_video(client, seed, way, Path(folder), tally)

            for way in ways:
                await tqdm.gather(*(judge(way, FIRST_SEED + k) for k in range(clips)), desc=way)
    return tally


@asynccontextmanager
async def service_url(url: str | None) -> AsyncIterator[str]:
    """Yield `url` or, if it is None, the address of a service that runs until the end of the block."""
    if url:
        yield url
        return
    with tempfile.TemporaryDirectory() as folder:
        settings = UpSettings(data_dir=Path(folder), port=free_port())
        async with local_service(settings):
            yield settings.url


async def report(options: argparse.Namespace) -> str:
    async with service_url(options.url) as url:
        start_s = monotonic()
        tally = await judge_all(url, options.ways, options.clips, options.concurrency)
        duration_s = monotonic() - start_s
    ways = " ".join(f"'{way}'" if " " in way else way for way in options.ways)
    command = f"python bench/demo_quality.py --clips {options.clips} --concurrency {options.concurrency} --ways {ways}"
    return (
        f"# Demo model: quality through the service\n\n"
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, "
        f"{os.cpu_count()} cores ({platform.machine()}), {duration_s:.0f} s.\n"
        f"Held-out seeds from {FIRST_SEED}, semantic keyframes.\n\n"
        f"{tally.table()}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a running service (default: start one with the demo model)")
    parser.add_argument("--clips", type=int, default=500, help="number of held-out clips for each way")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="ways of captioning to measure")
    parser.add_argument("--concurrency", type=int, default=8, help="number of jobs at a time")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file for the table")
    options = parser.parse_args()
    text = asyncio.run(report(options))
    print(text)
    options.out.write_text(text)


if __name__ == "__main__":
    main()
