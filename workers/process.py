"""The worker process: loads the models, runs two threads, and shuts both down cleanly.

The main thread runs RQ's worker, which only waits for wake-ups. The other thread runs the asyncio event loop of the
engine, the jobs and the reaper. Neither ends because of a Redis outage.
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

from service.contract.sandbox.subprocesses import ChildStarter
from service.contract.storage.backends import open_storage
from service.contract.store.connection import connect
from service.contract.store.reaper import Reaper
from service.contract.store.store import RetryingStore
from service.contract.store.wakeups import Wakeups
from service.contract.store.worker_cards import WorkerCard
from workers.attempt import WorkerContext
from workers.models.engine import Captioner, FrameEncoder
from workers.settings import KEY_SEQUENCES_ON_CPU, Settings
from workers.shares import EngineShares
from workers.slot_worker import SlotWorker
from workers.tasks import JobRunner
from workers.video.decoders import Decoders
from workers.video.frames import LIBRARIES

WORKER_CONNECTIONS = 64
REPLY_TIMEOUT_S = 2.0
"""Much shorter than a lease, so that one lost reply does not cost the lease."""
RECONNECT_PAUSE_S = 1.0

log = logging.getLogger("sharecap.worker")
T = TypeVar("T")


@dataclass(frozen=True)
class Models:
    """The loaded models. `slots`: how many videos they caption at once. `stop`: ends the engine.

    `key_sequences`: how many sequences the engine runs at once for one API key.
    """

    captioner: Captioner
    encoder: FrameEncoder
    slots: int
    stop: Callable[[], None]
    key_sequences: int = KEY_SEQUENCES_ON_CPU
    demonstration: str = ""
    """What a demonstration model knows and what it cannot do; empty for any other model."""


class LoopThread:
    """A thread that runs an asyncio event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="loop", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run `coroutine` on the loop and return its result."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        return future.result()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)


def worker_card(settings: Settings, models: Models) -> WorkerCard:
    """Return the card that announces this process to the gateway."""
    host = socket.gethostname()
    return WorkerCard(
        id=f"{host}-{os.getpid()}",
        host=host,
        model=settings.public_model,
        demonstration=models.demonstration,
        slots=models.slots,
    )


class Worker:
    """Everything that runs on the event loop: models, jobs and reaper."""

    def __init__(
        self, runner: JobRunner, models: Models, redis: AsyncRedis, reaper: Reaper, starter: ChildStarter
    ) -> None:
        self.runner = runner
        self._models = models
        self._starter = starter
        self._redis = redis
        self._reaping = asyncio.create_task(reaper.run())

    @classmethod
    async def start(cls, settings: Settings, load: Callable[[Settings], Models]) -> "Worker":
        """Load the models and start the job runner, which announces this worker to the gateway."""
        redis = connect(settings.redis_url, WORKER_CONNECTIONS, patience_s=0, socket_timeout=REPLY_TIMEOUT_S)
        store, wakeups = RetryingStore(redis), Wakeups(settings.redis_url)
        storage = open_storage(settings)
        models = load(settings)
        starter = ChildStarter(LIBRARIES)
        starter.start()  # after the engine, which would inherit its socket
        context = WorkerContext(
            settings,
            storage,
            models.captioner,
            models.encoder,
            Decoders(settings.decoders, settings.key_share),
            find_job=store.job,
            engine_shares=EngineShares(models.key_sequences),
            starter=starter,
        )
        card = worker_card(settings, models)
        runner = JobRunner(context, store, wakeups, card, on_engine_death=stop_main_thread)
        log.info("ready: %s, %d slots", settings.model, models.slots)
        return cls(runner, models, redis, Reaper(store, wakeups, storage), starter)

    async def stop(self, drain_s: float) -> None:
        """Give running jobs `drain_s` seconds to finish, give the others back, and end the engine."""
        self._reaping.cancel()
        await self.runner.stop(drain_s)
        self._starter.close()
        self._models.stop()
        await self._redis.aclose()


def stop_main_thread() -> None:
    """Make RQ's worker on the main thread stop. Can be called from any thread."""
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    signal.pthread_kill(main_thread, signal.SIGTERM)


def listen(runner: JobRunner, redis: Redis) -> None:
    """Receive wake-ups until SIGTERM or SIGINT. RQ's worker ends when Redis is unreachable; a new one replaces it."""
    stop = threading.Event()
    while not stop.is_set():
        try:
            SlotWorker(runner, redis, stop).work(logging_level="WARNING")
            stop.wait(RECONNECT_PAUSE_S)
        except RedisError as error:
            log.warning("cannot reach Redis: %s", error)
            stop.wait(RECONNECT_PAUSE_S)
        except StopRequested:  # a signal arrived between two of RQ's workers
            pass


def work(settings: Settings, load: Callable[[Settings], Models]) -> int:
    """Run until a signal arrives or the engine dies. Returns the exit status."""
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
