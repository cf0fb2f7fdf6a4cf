"""A worker at work: models loaded, two threads running, and both ended cleanly.

The main thread runs RQ's worker, which does nothing but wait for wake-ups; on the other runs the asyncio loop on which
engine, jobs and reaper live. Neither ends because Redis goes away for a while.
"""

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import RedisError
from rq.exceptions import StopRequested

from service.contract.store.connection import connect
from service.contract.store.reaper import Reaper
from service.contract.store.store import Store, WorkerCard
from service.contract.store.wakeups import Wakeups
from workers.attempt import WorkerContext
from workers.models.engine import Captioner, FrameEncoder
from workers.settings import Settings
from workers.slot_worker import SlotWorker
from workers.tasks import Runner

CONNECTIONS = 64
ANSWER_TIMEOUT_S = 2.0
"""Far below the length of a lease: a lost answer must not cost the lease."""
PAUSE_S = 1.0

log = logging.getLogger("sharecap.worker")
T = TypeVar("T")


@dataclass(frozen=True)
class Models:
    """What captions and what compares frames; `slots` videos may be in work at once; `stop` ends the engine."""

    captioner: Captioner
    encoder: FrameEncoder
    slots: int
    stop: Callable[[], None]


class LoopThread:
    """A thread with a running asyncio loop."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="loop", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Return what `coroutine` returns on the loop."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        return future.result()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)


def worker_id() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


class Worker:
    """Everything that lives on the loop: models, jobs, reaper."""

    def __init__(self, runner: Runner, models: Models, redis: AsyncRedis, reaper: Reaper) -> None:
        self.runner = runner
        self._models = models
        self._redis = redis
        self._reaping = asyncio.create_task(reaper.run())

    @classmethod
    async def start(cls, settings: Settings, load: Callable[[Settings], Models]) -> "Worker":
        """Load the models and take up the work; from then on the gateway knows of this worker."""
        redis = connect(settings.redis_url, CONNECTIONS, patience_s=0, socket_timeout=ANSWER_TIMEOUT_S)
        store, wakeups = Store(redis), Wakeups(settings.redis_url)
        models = load(settings)
        tools = WorkerContext(settings, store, models.captioner, models.encoder, asyncio.Semaphore(settings.decoders))
        card = WorkerCard(id=worker_id(), model=settings.model, slots=models.slots)
        runner = Runner(tools, wakeups, card, on_engine_death=wake_main_thread)
        log.info("ready: %s, %d slots", settings.model, models.slots)
        return cls(runner, models, redis, Reaper(store, wakeups, settings.data_dir))

    async def stop(self, drain_s: float) -> None:
        """Give back what is not finished in time, and end the engine."""
        self._reaping.cancel()
        await self.runner.stop(drain_s)
        self._models.stop()
        await self._redis.aclose()


def wake_main_thread() -> None:
    """Make RQ's worker stop, from whatever thread."""
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    signal.pthread_kill(main_thread, signal.SIGTERM)


def listen(runner: Runner, redis: Redis) -> None:
    """Take wake-ups until SIGTERM or SIGINT. RQ's worker ends when Redis goes away; then a new one takes its place."""
    stop = threading.Event()
    while not stop.is_set():
        try:
            SlotWorker(runner, redis, stop).work(logging_level="WARNING")
            stop.wait(PAUSE_S)
        except RedisError as error:
            log.warning("Redis cannot be reached: %s", error)
            stop.wait(PAUSE_S)
        except StopRequested:  # by a signal that came between two of RQ's workers
            pass


def work(settings: Settings, load: Callable[[Settings], Models]) -> int:
    """Run until asked to stop, or until the engine dies; return the exit status."""
    redis = Redis.from_url(settings.redis_url)
    redis.ping()
    thread = LoopThread()
    worker = thread.run(Worker.start(settings, load))
    try:
        listen(worker.runner, redis)
    finally:
        thread.run(worker.stop(settings.drain_s))
        thread.stop()
    return 1 if worker.runner.engine_died else 0
