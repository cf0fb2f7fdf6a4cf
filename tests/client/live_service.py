"""A gateway and a scripted worker in a thread, for tests of commands that run in the main thread."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.app import Server, create_app
from service.contract.jobs import JobKind
from service.contract.store.connection import connect
from service.contract.store.store import Store
from service.settings import Settings
from tests.service.scripted import ScriptedWorker, recaption_events, video_events

HOLD = {"hold": "yes"}
"""Metadata of a job that the worker does not finish."""


async def work(store: Store) -> None:
    """Run each job as its kind requires, until cancelled."""
    worker = ScriptedWorker(store)
    while True:
        job_id = await worker.oldest_queued()
        record = await store.record(job_id)
        if record is None or (lease := await store.claim(job_id)) is None:
            continue
        worker.positions[job_id] = 1
        events = video_events(job_id) if record.kind is JobKind.VIDEO else recaption_events(job_id)
        await worker.append(lease, *(events[:-1] if record.metadata == HOLD else events))


class LiveService(threading.Thread):
    """Serves until `stop`. `url` is set once the service answers."""

    def __init__(self, redis_url: str, data_dir: Path) -> None:
        super().__init__(daemon=True)
        self.redis_url = redis_url
        self._settings = Settings(redis_url=redis_url, data_dir=data_dir, port=0, min_free_bytes=0)
        self._ready = threading.Event()
        self.url = ""

    def start(self) -> None:
        super().start()
        assert self._ready.wait(30), "the gateway did not start"

    def stop(self) -> None:
        self._server.should_exit = True
        self.join(30)

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        app = create_app(self._settings)
        self._server = server = Server(app, self._settings)
        server.config.log_level = "error"
        server.config.configure_logging()
        serving = asyncio.create_task(server._serve())
        while not server.started:
            await asyncio.sleep(0.01)
        self.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        async with connect(self._settings.redis_url) as redis:
            working = asyncio.create_task(work(Store(redis)))
            self._ready.set()
            await serving
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)


@contextmanager
def live_service(redis_url: str, data_dir: Path) -> Iterator[LiveService]:
    service = LiveService(redis_url, data_dir)
    service.start()
    try:
        yield service
    finally:
        service.stop()
