"""A small process that outlives this one by a moment: it ends the process groups that this one could not end itself.

The supervisor forks it before it starts anything. Each new child says its group over a pipe before it becomes its
program, so that no instant is left in which it is unknown; the pipe's end is the end of this process.
"""

import contextlib
import os
import signal
import time

TIMEOUT_S = 5.0


class Guard:
    """The forked process, seen from the one that it watches."""

    def __init__(self) -> None:
        inlet, self._outlet = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._outlet)
                _watch(inlet)
            finally:
                os._exit(0)  # never back into the code of the process that was copied
        os.close(inlet)

    def enter(self) -> None:
        """Called in a new child, before it becomes its program: from here on its group is known to the guard."""
        self._tell(f"+{os.getpid()}\n")

    def leave(self, group: int) -> None:
        """The group has ended, and its number may become another's."""
        self._tell(f"-{group}\n")

    def close(self) -> None:
        """End the guard. Groups that are still there end with it."""
        os.close(self._outlet)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def _tell(self, line: str) -> None:
        with contextlib.suppress(OSError):
            os.write(self._outlet, line.encode())


def kill_group(group: int, number: int = signal.SIGKILL) -> bool:
    """Send a signal to a process group; return whether there was one."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _watch(inlet: int) -> None:
    """Note the groups that come and go until the other end of the pipe is closed, then end those that are left."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    with os.fdopen(inlet) as lines:
        for line in lines:
            (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    left = {group for group in groups if kill_group(group, signal.SIGTERM)}
    end = time.monotonic() + TIMEOUT_S
    while left and time.monotonic() < end:
        time.sleep(0.05)
        left = {group for group in left if kill_group(group, 0)}
    for group in left:
        kill_group(group)
