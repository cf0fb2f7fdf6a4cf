"""What tests see of a running gateway, and a worker that appends the events of a test's script."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from service.app import Server
from service.contract.events import Caption, Completed, Delta, Differential, Event, Keyframes, Started, Video
from service.contract.jobs import Keyframe, Timings, Usage
from service.contract.store.leases import Lease
from service.contract.store.store import Store
from service.contract.store.worker_cards import WorkerCard
from service.settings import Settings


@dataclass
class Served:
    """A running gateway: its URL, its settings and a client for it."""

    url: str
    settings: Settings
    client: httpx.AsyncClient
    app: FastAPI
    server: Server

    @property
    def files(self) -> list[str]:
        """The names of all files in the data directory."""
        return sorted(p.name for p in self.settings.data_dir.rglob("*") if p.is_file())

    async def post_video(self, path: Path, **options: str) -> httpx.Response:
        with path.open("rb") as file:
            return await self.client.post("/captions", data=options, files={"file": (path.name, file)})


Serve = Callable[..., Any]


@dataclass
class ScriptedWorker:
    """Claims jobs and appends given events, as a worker does."""

    store: Store
    positions: dict[str, int] = field(default_factory=dict)
    """The position of the newest event of each job."""

    async def claim(self, job_id: str) -> Lease:
        lease = await self.store.claim(job_id)
        assert lease is not None
        self.positions[job_id] = 1
        return lease

    async def append(self, lease: Lease, *events: Event) -> None:
        for event in events:
            self.positions[lease.job_id] += 1
            await self.store.append(lease, self.positions[lease.job_id], event)

    async def oldest_queued(self) -> str:
        """Return the id of the job that has been queued longest. Waits until a job is queued."""
        while True:
            if queued := await self.store.redis.zrange("sharecap:queued", 0, 0):
                return str(queued[0])
            await asyncio.sleep(0.01)

    async def show_card(self, **changes: str) -> None:
        await self.store.show_worker(WorkerCard(id="w1", model="test/model", slots=4, **changes))

    def serve(self, script: Callable[[str], list[Event]], pause_s: float = 0.0) -> "asyncio.Task[None]":
        """Claim each queued job and append the events of `script(job_id)`, until cancelled."""

        async def work() -> None:
            while True:
                lease = await self.claim(await self.oldest_queued())
                for event in script(lease.job_id):
                    await self.append(lease, event)
                    await asyncio.sleep(pause_s)

        return asyncio.create_task(work())


def video_events(job_id: str) -> list[Event]:
    """All events of a video job with two keyframes, except `queued`."""
    return [
        Started(attempt=1, model="test/model"),
        Video(duration_s=3.0, width=160, height=120, fps=10.0, interval_s=2.0),
        Keyframes(keyframes=[Keyframe(index=0, time_s=0.0)], complete=False),
        Delta(of="differential", keyframe=0, text="A light "),
        Delta(of="differential", keyframe=0, text="square."),
        Differential(keyframe=0, time_s=0.0, text="A light square."),
        Keyframes(keyframes=[Keyframe(index=1, time_s=2.0)], complete=True),
        Differential(keyframe=1, time_s=2.0, text="Das Quadrat fährt nach rechts — 正方形 🟨."),
        Caption(text="A light square moves to the right."),
        Completed(usage=Usage(prompt_tokens=100, image_tokens=80, completion_tokens=20), timings_s=Timings(decode=0.1)),
    ]


def recaption_events(job_id: str) -> list[Event]:
    return [
        Started(attempt=1),
        Delta(of="caption", text="A red "),
        Delta(of="caption", text="fox."),
        Caption(text="A red fox."),
        Completed(usage=Usage(completion_tokens=4), timings_s=Timings()),
    ]


async def eventually(check: Callable[[], Awaitable[bool]], timeout_s: float = 5.0) -> None:
    """Wait until `check()` returns true. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not await check():
            await asyncio.sleep(0.02)
