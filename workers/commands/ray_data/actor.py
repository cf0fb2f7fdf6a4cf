"""The class that Ray Data makes an actor of: one process with one engine, which captions many clips at once.

The engine and the clips have an event loop of their own. Ray's loop is blocked whenever the results of an actor wait to
be written, and the engine must not stand still meanwhile.
"""

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from shutil import rmtree
from tempfile import gettempdir, mkdtemp
from typing import Any, NoReturn

import pyarrow as pa
from sharecap_client.datasets.errors import StoreError
from sharecap_client.datasets.lock import exclusive
from sharecap_client.datasets.rows import Row, to_table

from service.contract.jobs import VideoOptions
from service.contract.sandbox.subprocesses import ChildStarter
from service.contract.storage.backends import open_storage
from workers.attempt import WorkerContext
from workers.commands.ray_data.clips import Clip, ClipCaptioner
from workers.commands.ray_data.deaths import RemoteDeaths
from workers.commands.ray_data.object_stores import use_pyarrow_for_s3
from workers.main import ENGINE_ENVIRONMENT
from workers.parent_death import set_up_worker
from workers.process import LoopThread, Models
from workers.settings import Settings
from workers.video.decoders import Decoders
from workers.video.frames import LIBRARIES

DIRECTORY_PREFIX = "sharecap-ray-"

log = logging.getLogger("sharecap.worker")


def load_models(settings: Settings) -> Models:
    """Load the models of the worker."""
    from workers.models.load import load  # noqa: PLC0415 (imports vLLM, which reads the environment)

    return load(settings)


class RayCaptioner:
    """Captions batches of clips.

    `settings` are those that differ from the worker's defaults on this host. `options` are those of the jobs.
    `deaths` is the actor that runs `Deaths`.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        options: VideoOptions,
        stored_options: str,
        deaths: Any,
        load: Callable[[Settings], Models] = load_models,
    ) -> None:
        _prepare_process()
        self._directory = _private_directory()
        self._lock = exclusive(self._directory)
        self._lock.__enter__()
        self._thread = LoopThread()
        self._starter = ChildStarter(LIBRARIES)

        async def start() -> ClipCaptioner:
            here = Settings(**settings, data_dir=self._directory)
            models = load(here)
            self._starter.start()  # after the engine, which would inherit its socket
            storage, decoders = open_storage(here), Decoders(here.decoders)
            context = WorkerContext(here, storage, models.captioner, models.encoder, decoders, starter=self._starter)
            counter = RemoteDeaths(deaths)
            return ClipCaptioner(
                context, options, stored_options, slots=models.slots, deaths=counter, end_process=_end_process
            )

        self._clips = self._thread.run(start())

    async def __call__(self, batch: pa.Table) -> AsyncIterator[pa.Table]:
        """Yield the rows of a batch when all of them are finished."""
        clips = [Clip(**record) for record in batch.to_pylist()]
        rows: Future[Sequence[Row]] = asyncio.run_coroutine_threadsafe(self._clips.rows(clips), self._thread.loop)
        yield to_table(await asyncio.wrap_future(rows))

    def stop(self) -> None:
        """End the threads and children of this object. Ray does not call this: it ends the whole process."""
        self._starter.close()
        self._thread.stop()
        self._thread.loop.close()
        self._lock.__exit__(None, None, None)


def _prepare_process() -> None:
    """Do what the worker's entry point does, in a process that Ray has started."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s %(levelname)s %(message)s")
    for name, value in ENGINE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    use_pyarrow_for_s3()
    set_up_worker()
    # A process that vLLM spawns imports the main module of this one first. The worker's makes it end with this process.
    sys.modules["__main__"].__spec__ = find_spec("workers.main")


def _private_directory() -> Path:
    """Make a directory for the videos and keyframes of this process. Deletes those that dead processes have left."""
    for path in Path(gettempdir()).glob(f"{DIRECTORY_PREFIX}*"):
        with suppress(StoreError, OSError), exclusive(path):
            rmtree(path, ignore_errors=True)
    return Path(mkdtemp(prefix=DIRECTORY_PREFIX))


def _end_process() -> NoReturn:
    """End this process, whose engine has died. Ray starts another one and repeats its clips."""
    log.error("the engine has died")
    os._exit(1)
