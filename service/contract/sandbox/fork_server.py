"""The fork server: `start_child.py PARENT_PID fork_server.py MODULE...`, started by `subprocesses.py`.

It imports the libraries that the child processes need, and then forks one child for each file. It holds nothing else:
its environment is empty, it has one thread, its only connection is the socket to its parent, and it never learns which
files its children open. So a child starts with libraries, and with nothing that belongs to another file.

Each message on standard input, a socket, is one byte with three descriptors: a socket on which the server reports the
child's exit status, a pipe from which the child reads its script and arguments, and a pipe for its output. The server
kills the child when the parent closes its end of that socket for writing. It ends with its parent, and its children end
with it. Like the children's scripts, it runs without a search path and imports nothing from this package.
"""

import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path

SANDBOX = Path(__file__).resolve().parent
STATUS = struct.Struct("<i")
NOT_FORKED = -signal.SIGKILL
"""Reported if no process can be forked, because memory is short or the limit of processes is reached."""
PR_SET_NAME = 15


class ForkServer:
    """Forks children and reports their exit statuses until the parent closes the control socket."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._wakeup, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        self._children: dict[int, socket.socket] = {}  # by process id: where to report the exit status
        self._poll = select.poll()
        for descriptor in (control.fileno(), self._wakeup):
            self._poll.register(descriptor, select.POLLIN)

    def serve(self) -> tuple[int, int]:
        """Handle messages. Returns only in a child: the descriptors of its request and of its output."""
        while True:
            ready = {descriptor for descriptor, _ in self._poll.poll()}
            self._kill([pid for pid, status in self._children.items() if status.fileno() in ready])
            if self._wakeup in ready:
                self._reap()
            if self._control.fileno() in ready:
                _, descriptors, _, _ = socket.recv_fds(self._control, 1, 3)
                if not descriptors:
                    sys.exit()
                status, request, output = descriptors
                if self._fork(socket.socket(fileno=status)) == 0:
                    return request, output
                os.close(request)
                os.close(output)

    def _fork(self, status: socket.socket) -> int:
        try:
            pid = os.fork()
        except OSError:
            _report(status, NOT_FORKED)
            return -1
        if pid:
            self._children[pid] = status
            self._poll.register(status.fileno(), select.POLLIN)
        else:
            for connection in (self._control, status, *self._children.values()):
                connection.close()
        return pid

    def _kill(self, pids: list[int]) -> None:
        """Kill children that have not been reaped, so the process ids are still theirs."""
        for pid in pids:
            self._poll.unregister(self._children[pid].fileno())
            os.kill(pid, signal.SIGKILL)

    def _reap(self) -> None:
        """Report the exit statuses of the children that have ended."""
        os.read(self._wakeup, 4096)
        for pid in list(self._children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                connection = self._children.pop(pid)
                with suppress(KeyError):
                    self._poll.unregister(connection.fileno())
                _report(connection, os.waitstatus_to_exitcode(status))


def _report(connection: socket.socket, exit_status: int) -> None:
    with connection, suppress(OSError):  # the parent may no longer wait for the child
        connection.send(STATUS.pack(exit_status))


def load(modules: list[str]) -> None:
    """Import the modules. The children share the memory of what they define."""
    for module in modules:
        importlib.import_module(module)
    if len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208 (a child has only the thread that forked it)
        raise RuntimeError("a library has started a thread")
    gc.collect()
    gc.freeze()


def become_child(server_pid: int, request: int, output: int) -> list[str]:
    """Give up what a child has of the server apart from memory. Returns the script to run and its arguments."""
    runpy.run_path(str(SANDBOX / "start_child.py"))["end_with_parent"](server_pid)
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(request, 0)
    os.dup2(output, 1)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    arguments: list[str] = json.loads(sys.stdin.buffer.read())
    os.dup2(null := os.open(os.devnull, os.O_RDONLY), 0)
    os.close(null)
    ctypes.CDLL(None).prctl(PR_SET_NAME, Path(arguments[0]).name.encode(), 0, 0, 0)
    return arguments


def run(script: str) -> int:
    """Run a child's script. Returns the exit status, as Python would."""
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except Exception:
        return 1
    return 0


if __name__ == "__main__":
    load(sys.argv[1:])
    SERVER_PID = os.getpid()
    sys.argv = become_child(SERVER_PID, *ForkServer(socket.socket(fileno=0)).serve())
    EXIT_STATUS = run(sys.argv[0])
    sys.stdout.flush()
    os._exit(EXIT_STATUS)  # freeing every object first would take longer than confinement
