"""A run of `sharecap batch`: reads the input as a stream, captions some videos at a time, writes their rows."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import Future
from contextlib import aclosing
from itertools import islice
from queue import SimpleQueue
from threading import Thread
from typing import Any, Self, TypeVar

from sharecap_client.api import AsyncClient
from sharecap_client.datasets.batch.captioner import Captioner
from sharecap_client.datasets.batch.inputs import Item
from sharecap_client.datasets.batch.pace import Pace
from sharecap_client.datasets.batch.progress import Progress
from sharecap_client.datasets.batch.selection import Selection, Task
from sharecap_client.datasets.batch.writer import RowWriter
from sharecap_client.datasets.rows import Row
from sharecap_client.datasets.store import Store
from sharecap_client.errors import InvalidOption
from sharecap_client.models import JobStatus

READ_AHEAD = 64
T = TypeVar("T")


class Run:
    """Captions the videos that `selection` chooses. `store` must be locked by this process."""

    def __init__(
        self, client: AsyncClient, store: Store, selection: Selection, progress: Progress, concurrency: int
    ) -> None:
        self._store, self._selection, self._progress = store, selection, progress
        self._pace = Pace(concurrency)
        self._captioner = Captioner(client, store.manifest, self._pace, progress)
        self._writer = RowWriter(store)
        self._empty = not store.parts.numbers()

    async def caption(self, items: Iterable[Item], *, count: bool) -> None:
        """Caption everything. With `count`, a thread counts the items meanwhile, so that the end can be estimated.

        Finished rows are in the store when this returns or is cancelled. Raises SharecapError if it is pointless to
        go on, and OSError if the store cannot be written.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                background = [tasks.create_task(self._writer.keep_writing())]
                if count:
                    background.append(tasks.create_task(self._count(items)))
                await self._caption_all(items)
                for task in background:
                    task.cancel()
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        finally:
            self._writer.close()
        totals = self._progress.totals
        self._progress.counted(totals.skipped + totals.finished)
        if not totals.total:
            self._progress.note("the input contains no videos")
        await asyncio.to_thread(self._store.compact)

    async def _caption_all(self, items: Iterable[Item]) -> None:
        async with asyncio.TaskGroup() as tasks, aclosing(read_in_thread(items)) as stream:
            async for item in stream:
                if (task := self._selection.task(item)) is None:
                    self._progress.skipped()
                    continue
                await self._pace.enter()
                tasks.create_task(self._caption_one(task))

    async def _caption_one(self, task: Task) -> None:
        try:
            row = await self._captioner.row(task)
            self._check_options(row)
            await self._writer.add(row)
            self._progress.row(row)
        finally:
            self._pace.leave()

    def _check_options(self, row: Row) -> None:
        """Raise InvalidOption if the first video of all fails because of an option: the others would fail as well."""
        if self._empty and row.error and row.error.code == InvalidOption.CODE and row.state is JobStatus.FAILED:
            raise InvalidOption(row.error.detail)
        self._empty = False

    async def _count(self, items: Iterable[Item]) -> None:
        with OwnThread("counter") as thread:
            self._progress.counted(await thread.run(lambda: sum(1 for _ in items)))


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first exception in a group, which can contain further groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def read_in_thread(items: Iterable[Item]) -> AsyncGenerator[Item]:
    """Yield the items, which are read in a thread, a few at a time."""
    iterator = iter(items)
    with OwnThread("reader") as thread:
        while batch := await thread.run(lambda: list(islice(iterator, READ_AHEAD))):
            for item in batch:
                yield item


class OwnThread:
    """A thread that does one kind of work; use it with `with`.

    Freed memory is kept for each thread that has used it, so work that wandered between the threads of a pool would use
    several times as much. At its end, the process does not wait for this thread: it may be reading standard input.
    """

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        Thread(target=self._work, name=name, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._calls.put(None)

    async def run(self, call: Callable[[], T]) -> T:
        """Return what `call` returns in the thread."""
        future: Future[T] = Future()
        self._calls.put((future, call))
        return await asyncio.wrap_future(future)

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            future, call = item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
