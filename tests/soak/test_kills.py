"""Workers are killed at random while videos are captioned: no job is lost and no event is repeated."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.soak.conftest import KEYFRAMES, SoakSize
from tests.soak.history import check, quantile, read_histories, recoveries_s

OPTIONS = {"keyframes": "interval", "interval_s": "1"}
WORKERS = 4
"""With this many workers one is killed every 0.3 to 2 seconds; with fewer workers proportionally less often."""


async def test_killed_workers_lose_and_repeat_nothing(start: Callable[..., Any], video: Path, size: SoakSize) -> None:
    cluster = await start(size.workers, gateway=True, lease_s=size.lease_s)
    chance = random.Random(size.seed)
    kills = 0

    async def kill_workers() -> None:
        nonlocal kills
        while not size.kills or kills < size.kills:
            await asyncio.sleep(chance.uniform(0.3, 2) * WORKERS / size.workers)
            ready = await cluster.ready()  # killing a worker that is still starting would test nothing
            if ready and (not size.kills or await cluster.unfinished(list(accepted))):
                await cluster.kill_worker(chance.choice(ready))
                cluster.start_worker()
                kills += 1

    accepted: dict[str, int] = {}
    killing = asyncio.create_task(kill_workers())
    for _ in range(size.jobs):
        accepted[await cluster.post(video, **OPTIONS)] = KEYFRAMES
    await cluster.until_ended(list(accepted), 60 + 5 * size.jobs)
    killing.cancel()

    histories = await read_histories(cluster.store, accepted)
    check(histories)
    outcomes, recoveries = (
        Counter(history.outcome for history in histories),
        recoveries_s(histories, cluster.interrupted),
    )
    print(f"\nseed {size.seed}: {size.jobs} jobs, {size.workers} workers, {kills} kills")
    print(f"outcomes: {dict(outcomes)}; attempts: {sum(history.attempts for history in histories)}")
    print(
        f"recovery of {len(recoveries)} jobs: p50 {quantile(recoveries, 0.5):.1f} s, "
        f"p99 {quantile(recoveries, 0.99):.1f} s, longest {recoveries[-1] if recoveries else 0:.1f} s"
    )
    assert kills >= (size.kills or 1)
    assert quantile(recoveries, 0.99) <= size.recovery_s
    assert set(outcomes) <= {"completed", "attempts_exhausted"} and outcomes["completed"] > size.jobs / 2
