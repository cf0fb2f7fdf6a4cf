"""Soak tests with real processes and real videos; environment variables set their size.

`SOAK_JOBS`, `SOAK_WORKERS`, `SOAK_KILLS` (0: until all jobs have ended), `SOAK_LEASE_S`, `SOAK_RECOVERY_S` (the
allowed 99th percentile), `SOAK_GOOD` (good videos next to the deadly ones), `SOAK_SEED`. The defaults are small enough
for every test run on a busy machine; `make soak` runs the full size.
"""

import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import MakeClip
from tests.soak.cluster import Cluster

SECONDS = 5
KEYFRAMES = 6
"""The keyframes of such a video with `interval_s=1`: one per second, and the last frame."""


@dataclass(frozen=True)
class SoakSize:
    jobs: int = int(os.environ.get("SOAK_JOBS", "40"))
    workers: int = int(os.environ.get("SOAK_WORKERS", "2"))
    lease_s: float = float(os.environ.get("SOAK_LEASE_S", "2"))
    kills: int = int(os.environ.get("SOAK_KILLS", "3"))
    recovery_s: float = float(os.environ.get("SOAK_RECOVERY_S", "60"))
    good: int = int(os.environ.get("SOAK_GOOD", "5"))
    seed: int = int(os.environ.get("SOAK_SEED", "1"))


@pytest.fixture(scope="session")
def size() -> SoakSize:
    return SoakSize()


@pytest.fixture
def video(tmp_path: Path, make_clip: MakeClip) -> Path:
    """A real video with `KEYFRAMES` keyframes at one per second."""
    return make_clip(tmp_path / "video.mp4", seconds=SECONDS)


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., Cluster]]:
    """`await start(workers=2, lease_s=…)` starts a service, which is stopped after the test."""
    clusters: list[Cluster] = []

    async def starting(workers: int, *, gateway: bool = False, **values: object) -> Cluster:
        cluster = Cluster(tmp_path, **values)  # type: ignore[arg-type]
        await cluster.__aenter__()
        clusters.append(cluster)
        if gateway:
            await cluster.start_gateway()
        await cluster.start_workers(workers)
        return cluster

    yield starting  # type: ignore[misc]
    for cluster in clusters:
        await cluster.__aexit__()
