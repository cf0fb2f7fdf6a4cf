"""A worker at work: models loaded, two threads running, and both ended cleanly.

The main thread runs RQ's worker, which does nothing but wait for wake-ups; on the other runs the asyncio loop on which
engine and jobs live.
"""

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import torch
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from service.contract.redis import connect
from service.contract.store import LEASE_S, Store, WorkerCard
from workers.attempt import Tools
from workers.encoder import ClipEncoder
from workers.settings import SLOTS_ON_CPU, SLOTS_ON_GPU, Settings
from workers.slot_worker import SlotWorker
from workers.tasks import Runner
from workers.vllm_captioner import VllmCaptioner, model_defaults
from workers.wakeups import Wakeups

log = logging.getLogger("sharecap.worker")
T = TypeVar("T")


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
    """Everything that lives on the loop: engine, encoder, jobs."""

    def __init__(self, runner: Runner, captioner: VllmCaptioner, redis: AsyncRedis) -> None:
        self.runner = runner
        self._captioner = captioner
        self._redis = redis

    @classmethod
    async def start(cls, settings: Settings, wakeups: Wakeups) -> "Worker":
        """Load the models and take up the work; from then on the gateway knows of this worker."""
        redis = connect(settings.redis_url)
        defaults = model_defaults(settings.model)
        encoder = ClipEncoder(settings.model, defaults.keyframe_encoder)
        captioner = VllmCaptioner.start(settings)
        slots = settings.slots or (SLOTS_ON_GPU if torch.cuda.is_available() else SLOTS_ON_CPU)
        tools = Tools(settings, Store(redis), captioner, encoder, asyncio.Semaphore(settings.decoders))
        card = WorkerCard(id=worker_id(), model=settings.model, slots=slots)
        runner = Runner(tools, wakeups, card, on_engine_death=wake_main_thread)
        log.info("ready: %s, %d slots", settings.model, slots)
        return cls(runner, captioner, redis)

    async def stop(self, drain_s: float) -> None:
        """Give back what is not finished in time, and end the engine."""
        await self.runner.stop(drain_s)
        self._captioner.stop()
        await self._redis.aclose()


def wake_main_thread() -> None:
    """Make RQ's worker stop, from whatever thread."""
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    signal.pthread_kill(main_thread, signal.SIGTERM)


async def sweep(wakeups: Wakeups) -> None:
    """Find work that a worker's end has left behind: at once, and when the leases of one that just died are over."""
    for wait_s in (0.0, LEASE_S + 2):
        await asyncio.sleep(wait_s)
        await asyncio.to_thread(wakeups.sweep)


def work(settings: Settings) -> int:
    """Run until asked to stop; return the exit status."""
    redis = Redis.from_url(settings.redis_url)
    redis.ping()
    thread, wakeups = LoopThread(), Wakeups(Redis.from_url(settings.redis_url))
    worker = thread.run(Worker.start(settings, wakeups))
    try:
        rq_worker = SlotWorker(worker.runner, redis)
        sweeping = asyncio.run_coroutine_threadsafe(sweep(wakeups), thread.loop)
        rq_worker.work(logging_level="WARNING")
        sweeping.cancel()
    finally:
        thread.run(worker.stop(settings.drain_s))
        thread.stop()
    return 0 if rq_worker.asked_to_stop and not worker.runner.engine_died else 1
