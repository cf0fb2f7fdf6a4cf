"""The supervisor keeps the child processes of `sharecap up` running.

It starts each child in its own process group, writes the child's output to a log file, and restarts a child that dies,
with growing delays. It gives up when a child dies five times in a row without having worked. While something outside
the child keeps it from running, such as a full disk, the supervisor waits instead. Stopping ends the children and
everything that they started; a base child, which the others need, is stopped last.

No process is left behind: if this process ends without `stop` (SIGKILL, for example), the orphan guard ends the
groups (`service.local.orphan_guard`). `service.local.up` defines the children and decides when they are ready.
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

from service.contract.storage.private import private_directory
from service.local.orphan_guard import OrphanGuard, kill_group

MAX_FAILURES = 5
FIRST_DELAY_S = 0.5
MAX_DELAY_S = 10.0
STABLE_AFTER_S = 60.0
"""After the service was ready once, a child that runs this long has its failure count reset."""
STOP_TIMEOUT_S = 15.0
READ_REMAINING_S = 1.0
LOG_BYTES = 10_000_000
LAST_LINES = 30
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
EX_CONFIG = os.EX_CONFIG
"""A child that exits with this status (78) cannot work with its settings. It is not restarted."""

T = TypeVar("T")
Echo = Callable[[str, str], None]
"""Called with a child's name and one line of its output."""
Report = Callable[[str], None]
"""Called with one line about a child that has died or has to wait."""
Obstacle = Callable[[], str | None]
"""Returns why a child cannot run at the moment, None if it can. Called in a thread."""


class ChildFailed(CommandFailed):
    """The supervisor gave up on a child. The text contains its name, the reason and its last lines of output."""


@dataclass(frozen=True)
class Child:
    """A command to run with `env` added to this process's environment. A `base` child stops after all others.

    While `obstacle` names a reason, the child is not started, and its death does not count as a failure.
    """

    name: str
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    base: bool = False
    obstacle: Obstacle = lambda: None


class ChildLog(RotatingFileHandler):
    """A child's log file. A full disk loses lines and raises no error."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the line."""

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


class ChildState:
    """A supervised child: its current process, its failures in a row and its last lines of output."""

    def __init__(self, child: Child, log_dir: Path) -> None:
        self.child = child
        self.process: asyncio.subprocess.Process | None = None
        self.failures = 0
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self.log = ChildLog(log_dir / f"{child.name}.log", maxBytes=LOG_BYTES, backupCount=1, delay=True)
        self.task: asyncio.Task[None]


class Supervisor:
    """Keeps children running inside `async with`.

    `echo` receives every line that the children print; `report` receives one line for each child that died.

    The first SIGTERM, SIGINT or SIGHUP cancels the task that entered the block, and `signal` stores which one it was.
    A second signal kills the children.
    """

    def __init__(self, log_dir: Path, echo: Echo | None = None, report: Report | None = None) -> None:
        private_directory(log_dir)
        self._log_dir = log_dir
        self._echo = echo
        self._report = report
        self._children: list[ChildState] = []
        self._was_ready = False
        self._stopping = False
        self.signal: signal.Signals | None = None

    async def __aenter__(self) -> Self:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._task = task
        self._guard = OrphanGuard()
        self._given_up: asyncio.Future[NoReturn] = loop.create_future()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._signalled, number)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        try:
            await self.stop()
        finally:
            if self._given_up.done():
                self._given_up.exception()  # marks it as retrieved, which prevents asyncio's warning
            self._given_up.cancel()
            self._guard.close()
            for number in SIGNALS:
                asyncio.get_running_loop().remove_signal_handler(number)

    def start(self, child: Child) -> None:
        """Start a child and keep it running until `stop`."""
        state = ChildState(child, self._log_dir)
        state.task = asyncio.create_task(self._keep(state), name=f"keep {child.name}")
        self._children.append(state)

    async def run(self, work: Awaitable[T]) -> T:
        """Return the result of `work`. Raises ChildFailed as soon as the supervisor gives up on a child."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait((task, self._given_up), return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else self._given_up.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def mark_ready(self) -> None:
        """Record that all children work, and forget their failures so far."""
        self._was_ready = True
        for state in self._children:
            state.failures = 0

    async def stop(self) -> None:
        """End the children, a base child last: SIGTERM to the child, then SIGKILL to the rest of its group."""
        self._stopping = True
        for base in (False, True):
            await asyncio.gather(*(self._end(state) for state in self._children if state.child.base == base))
        self._children.clear()

    def _signalled(self, number: signal.Signals) -> None:
        if self.signal is None:
            self.signal = number
            self._task.cancel()
            return
        for state in self._children:
            if state.process is not None and state.process.returncode is None:
                kill_group(state.process.pid)

    async def _end(self, state: ChildState) -> None:
        if state.process is not None and state.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                state.process.terminate()
        done, _ = await asyncio.wait((state.task,), timeout=STOP_TIMEOUT_S)
        if not done:
            state.task.cancel()  # its `finally` kills the group
            await asyncio.gather(state.task, return_exceptions=True)
        state.log.close()

    async def _keep(self, state: ChildState) -> None:
        await self._waited(state)
        while not self._stopping:
            started_at = time.monotonic()
            try:
                status = await self._run_once(state)
            except OSError as error:
                self._give_up(f"{state.child.name} cannot be started: {error}")
                return
            if self._stopping:
                return
            if await self._waited(state):
                continue
            if self._was_ready and time.monotonic() - started_at >= STABLE_AFTER_S:
                state.failures = 0
            state.failures += 1
            if status == EX_CONFIG or state.failures >= MAX_FAILURES:
                self._give_up(_reason(state, status))
                return
            delay_s = min(MAX_DELAY_S, FIRST_DELAY_S * 2 ** (state.failures - 1))
            self._announce(state, f"ended ({_describe(status)}); restarting it in {delay_s:g} s")
            await self._pause(delay_s)

    async def _waited(self, state: ChildState) -> bool:
        """Wait until the child's obstacle is gone. Returns whether there was one."""
        reason = await asyncio.to_thread(state.child.obstacle)
        if reason is None:
            return False
        self._announce(state, f"waits: {reason}")
        delay_s = FIRST_DELAY_S
        while reason and not self._stopping:
            await self._pause(delay_s)
            delay_s = min(2 * delay_s, MAX_DELAY_S)
            reason = await asyncio.to_thread(state.child.obstacle)
        if not self._stopping:
            self._announce(state, "continues")
        return True

    async def _run_once(self, state: ChildState) -> int:
        """Run the child once, until its whole process group has ended. Returns its exit status."""
        # With asyncio's own pipes, `wait` would return only after the child's own children had closed them.
        read_end, write_end = os.pipe()
        reading = asyncio.create_task(self._read(state, read_end))
        try:
            process = state.process = await asyncio.create_subprocess_exec(
                *state.child.command,
                stdin=subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **state.child.env},
                start_new_session=True,
                preexec_fn=self._guard.enter,
            )
        finally:
            os.close(write_end)
        try:
            if self._stopping:
                process.terminate()
            return await process.wait()
        finally:
            kill_group(process.pid)
            self._guard.leave(process.pid)
            # The timeout is for a process that has left the group and keeps the pipe open.
            await asyncio.wait((reading,), timeout=READ_REMAINING_S)
            reading.cancel()

    async def _read(self, state: ChildState, read_end: int) -> None:
        stream = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(stream)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, os.fdopen(read_end, "rb"))
        try:
            rest = b""
            while chunk := await stream.read(65536):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._log(state, line.decode(errors="replace"))
            if rest:
                self._log(state, rest.decode(errors="replace"))
        finally:
            transport.close()

    def _log(self, state: ChildState, line: str) -> None:
        line = line.rstrip("\r")
        state.last_lines.append(line)
        state.log.emit(logging.makeLogRecord({"msg": line}))
        if self._echo is not None:
            self._echo(state.child.name, line)

    def _announce(self, state: ChildState, message: str) -> None:
        self._log(state, message)
        if self._report is not None:
            self._report(f"{state.child.name} {message}")

    async def _pause(self, delay_s: float) -> None:
        deadline = time.monotonic() + delay_s
        while not self._stopping and time.monotonic() < deadline:
            await asyncio.sleep(0.05)

    def _give_up(self, reason: str) -> None:
        if not self._given_up.done():
            self._given_up.set_exception(ChildFailed(reason))


def _describe(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def _reason(state: ChildState, status: int) -> str:
    times = "at its start" if state.failures == 1 else f"{state.failures} times in a row"
    lines = "".join(f"\n  {line}" for line in state.last_lines)
    return f"{state.child.name} ended {times} ({_describe(status)}). Its last lines of output:{lines}"
