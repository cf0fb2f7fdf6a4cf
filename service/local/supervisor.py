"""Child processes that are kept running: the ground under `sharecap up`.

A `Supervisor` starts children, each in a process group of its own, writes what they print to one log file each, starts
again whatever dies (later and later), and gives up on a child that dies five times in a row before anything worked.
Stopping takes the children down with all they started, the one that the others stand on last.

No process is left behind, whatever happens: if this process ends without `stop` (SIGKILL, say), its guard ends the
groups (`service.local.orphan_guard`). What the children are and when they are ready is said in `service.local.up`.
"""

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self, TypeVar

from sharecap_client.cli.errors import CommandFailed

from service.local.orphan_guard import Guard, kill_group

MAX_FAILURES = 5
FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 10.0
LIVED_S = 60.0
"""Once everything has been ready, a child that lived this long counts as having started well."""
STOP_TIMEOUT_S = 15.0
READ_REST_S = 1.0
LOG_BYTES = 10_000_000
LAST_WORDS = 30
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
EX_CONFIG = os.EX_CONFIG
"""A child that ends with this status (78) cannot work with the settings it has: starting it again is no use."""

T = TypeVar("T")
Echo = Callable[[str, str], None]
Tell = Callable[[str], None]


class ChildFailed(CommandFailed):
    """A child was given up; the text says which, why, and its last lines."""


@dataclass(frozen=True)
class Child:
    """What to run: `env` is added to this process's environment. The others need a `base`: it stops after them."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    base: bool = False


class Running:
    """One child's state: the process of its present life, and what it said last."""

    def __init__(self, child: Child, log_dir: Path) -> None:
        self.child = child
        self.process: asyncio.subprocess.Process | None = None
        self.failures = 0
        self.last_words: deque[str] = deque(maxlen=LAST_WORDS)
        self.log = RotatingFileHandler(log_dir / f"{child.name}.log", maxBytes=LOG_BYTES, backupCount=1)
        self.task: asyncio.Task[None]


class Supervisor:
    """Keeps children running between `async with` and its end.

    `echo` gets every line that they print, with the name; `tell` gets what this has to say itself: who died, and what
    is done about it.

    In between, the first SIGTERM, SIGINT or SIGHUP cancels the task that entered, and `signal` says which it was; a
    second one kills the children instead of asking them.
    """

    def __init__(self, log_dir: Path, echo: Echo | None = None, tell: Tell | None = None) -> None:
        log_dir.mkdir(parents=True, exist_ok=True)
        self._log_dir = log_dir
        self._echo = echo
        self._tell = tell
        self._children: list[Running] = []
        self._was_ready = False
        self._stopping = False
        self.signal: signal.Signals | None = None

    async def __aenter__(self) -> Self:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._task = task
        self._guard = Guard()
        self._given_up: asyncio.Future[NoReturn] = loop.create_future()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._signalled, number)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        try:
            await self.stop()
        finally:
            if self._given_up.done():
                self._given_up.exception()  # it has been seen: no "never retrieved"
            self._given_up.cancel()
            self._guard.close()
            for number in SIGNALS:
                asyncio.get_running_loop().remove_signal_handler(number)

    def start(self, child: Child) -> None:
        """Start a child and keep it running until `stop`."""
        running = Running(child, self._log_dir)
        running.task = asyncio.create_task(self._keep(running), name=f"keep {child.name}")
        self._children.append(running)

    async def guarded(self, work: Awaitable[T]) -> T:
        """Return what `work` returns; raise ChildFailed as soon as a child is given up."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait((task, self._given_up), return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else self._given_up.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def everything_is_ready(self) -> None:
        """Forget the failures so far: all children have been seen to work."""
        self._was_ready = True
        for running in self._children:
            running.failures = 0

    async def stop(self) -> None:
        """End the children, a base after the others: SIGTERM, then SIGKILL for whatever is left of a group."""
        self._stopping = True
        for base in (False, True):
            await asyncio.gather(*(self._end(running) for running in self._children if running.child.base == base))
        self._children.clear()

    def _signalled(self, number: signal.Signals) -> None:
        if self.signal is None:
            self.signal = number
            self._task.cancel()
            return
        for running in self._children:
            if running.process is not None and running.process.returncode is None:
                kill_group(running.process.pid)

    async def _end(self, running: Running) -> None:
        if running.process is not None and running.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                running.process.terminate()
        done, _ = await asyncio.wait((running.task,), timeout=STOP_TIMEOUT_S)
        if not done:
            running.task.cancel()  # its way out kills the group
            await asyncio.gather(running.task, return_exceptions=True)
        running.log.close()

    async def _keep(self, running: Running) -> None:
        while True:
            born = time.monotonic()
            try:
                status = await self._live(running)
            except OSError as error:
                self._give_up(f"{running.child.name} cannot be started: {error}")
                return
            if self._stopping:
                return
            if self._was_ready and time.monotonic() - born >= LIVED_S:
                running.failures = 0
            running.failures += 1
            if status == EX_CONFIG or running.failures >= MAX_FAILURES:
                self._give_up(_obituary(running, status))
                return
            delay_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** (running.failures - 1))
            said = f"ended ({_how(status)}); starting it again in {delay_s:g} s"
            self._note(running, said)
            if self._tell is not None:
                self._tell(f"{running.child.name} {said}")
            await self._pause(delay_s)
            if self._stopping:
                return

    async def _live(self, running: Running) -> int:
        """Run the child once, to its end and that of its whole group; return its exit status."""
        outlet, inlet = os.pipe()  # not asyncio's: with that, a child counts as ended only when all it started has
        reading = asyncio.create_task(self._read(running, outlet))
        try:
            process = running.process = await asyncio.create_subprocess_exec(
                *running.child.command,
                stdin=subprocess.DEVNULL,
                stdout=inlet,
                stderr=inlet,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **running.child.env},
                start_new_session=True,
                preexec_fn=self._guard.enter,
            )
        finally:
            os.close(inlet)
        try:
            if self._stopping:
                process.terminate()
            return await process.wait()
        finally:
            kill_group(process.pid)
            self._guard.leave(process.pid)
            await asyncio.wait((reading,), timeout=READ_REST_S)  # what left the group may hold the pipe for ever
            reading.cancel()

    async def _read(self, running: Running, outlet: int) -> None:
        stream = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(stream)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, os.fdopen(outlet, "rb"))
        try:
            rest = b""
            while chunk := await stream.read(65536):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._note(running, line.decode(errors="replace"))
            if rest:
                self._note(running, rest.decode(errors="replace"))
        finally:
            transport.close()

    def _note(self, running: Running, line: str) -> None:
        line = line.rstrip("\r")
        running.last_words.append(line)
        running.log.emit(logging.makeLogRecord({"msg": line}))
        if self._echo is not None:
            self._echo(running.child.name, line)

    async def _pause(self, delay_s: float) -> None:
        end = time.monotonic() + delay_s
        while not self._stopping and time.monotonic() < end:
            await asyncio.sleep(0.05)

    def _give_up(self, reason: str) -> None:
        if not self._given_up.done():
            self._given_up.set_exception(ChildFailed(reason))


def _how(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def _obituary(running: Running, status: int) -> str:
    times = "at its start" if running.failures == 1 else f"{running.failures} times in a row"
    words = "".join(f"\n  {line}" for line in running.last_words)
    return f"{running.child.name} ended {times} ({_how(status)}). Its last words:{words}"
