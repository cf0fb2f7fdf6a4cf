"""The orphan guard: a small process that ends child process groups if this process dies without ending them itself.

The supervisor forks the guard before it starts anything. Each new child writes its process group to the guard's pipe
before it executes its program, so the guard knows every group from the start. When the pipe closes, this process has
ended.
"""

import contextlib
import os
import signal
import time

END_TIMEOUT_S = 5.0


class OrphanGuard:
    """The forked guard process, seen from its parent."""

    def __init__(self) -> None:
        read_end, self._write_end = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._write_end)
                _watch(read_end)
            finally:
                os._exit(0)  # never return into the parent's code
        os.close(read_end)

    def enter(self) -> None:
        """Register the calling process's group. A new child calls this before it executes its program."""
        self._send(f"+{os.getpid()}\n")

    def leave(self, group: int) -> None:
        """Forget a group that has ended, because its number may be reused."""
        self._send(f"-{group}\n")

    def close(self) -> None:
        """End the guard and all groups that are still registered."""
        os.close(self._write_end)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def _send(self, line: str) -> None:
        with contextlib.suppress(OSError):
            os.write(self._write_end, line.encode())


def kill_group(group: int, number: int = signal.SIGKILL) -> bool:
    """Send a signal to a process group. Returns whether the group exists."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _watch(read_end: int) -> None:
    """Track the registered groups until the pipe closes, then end those that remain."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    with os.fdopen(read_end) as lines:
        for line in lines:
            (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    _end(groups)


def _end(groups: set[int]) -> None:
    """Send SIGTERM to the groups, and SIGKILL to those that still exist after `END_TIMEOUT_S`."""
    remaining = {group for group in groups if kill_group(group, signal.SIGTERM)}
    deadline = time.monotonic() + END_TIMEOUT_S
    while remaining and time.monotonic() < deadline:
        time.sleep(0.05)
        remaining = {group for group in remaining if kill_group(group, 0)}
    for group in remaining:
        kill_group(group)
