"""Workers are killed at random while videos are captioned: nothing is lost, nothing is told twice."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.soak.conftest import KEYFRAMES, Extent
from tests.soak.history import check, quantile, read, recoveries_s

OPTIONS = {"keyframes": "interval", "interval_s": "1"}
WORKERS = 4
"""So many, and one of them is killed every 0.3 to 2 seconds; with fewer it happens as much less often."""


async def test_kills_lose_nothing_and_double_nothing(start: Callable[..., Any], video: Path, extent: Extent) -> None:
    cluster = await start(extent.workers, gateway=True, lease_s=extent.lease_s)
    chance = random.Random(extent.seed)
    kills = 0

    async def nemesis() -> None:
        nonlocal kills
        while not extent.kills or kills < extent.kills:
            await asyncio.sleep(chance.uniform(0.3, 2) * WORKERS / extent.workers)
            ready = await cluster.ready()  # to kill one that is about to start would prove nothing
            if ready and (not extent.kills or await cluster.unended(list(accepted))):
                await cluster.kill_worker(chance.choice(ready))
                cluster.start_worker()
                kills += 1

    accepted: dict[str, int] = {}
    killing = asyncio.create_task(nemesis())
    for _ in range(extent.jobs):
        accepted[await cluster.post(video, **OPTIONS)] = KEYFRAMES
    await cluster.until_ended(list(accepted), 60 + 5 * extent.jobs)
    killing.cancel()

    stories = await read(cluster.store, accepted)
    check(stories)
    ends, recoveries = Counter(story.last for story in stories), recoveries_s(stories, cluster.held)
    print(f"\nseed {extent.seed}: {extent.jobs} jobs, {extent.workers} workers, {kills} kills")
    print(f"ends: {dict(ends)}; attempts: {sum(story.attempts for story in stories)}")
    print(
        f"recovery of {len(recoveries)} jobs: p50 {quantile(recoveries, 0.5):.1f} s, "
        f"p99 {quantile(recoveries, 0.99):.1f} s, longest {recoveries[-1] if recoveries else 0:.1f} s"
    )
    assert kills >= (extent.kills or 1)
    assert quantile(recoveries, 0.99) <= extent.recovery_s
    assert set(ends) <= {"completed", "attempts_exhausted"} and ends["completed"] > extent.jobs / 2
