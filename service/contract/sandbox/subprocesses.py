"""How a parent process starts and ends the children that open untrusted files, through a fork server."""

import asyncio
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from io import FileIO
from pathlib import Path

from service.contract.sandbox.fork_server import STATUS

START_CHILD = Path(__file__).with_name("start_child.py")
FORK_SERVER = Path(__file__).with_name("fork_server.py")
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1"}
"""NumPy would start a thread per core, each with 40 MB of address space, and threads do not survive a fork."""
OUTPUT_BUFFER_BYTES = 1 << 20
PIPE_BYTES = 1 << 18
"""asyncio reads at most this much at once. Linux's default is a quarter of it, so frames need four times the reads."""
END_TIMEOUT_S = 60.0
"""A killed child ends at once, unless the fork server is still starting."""


def child_arguments(script: Path, *arguments: str) -> tuple[str, ...]:
    """Return Python's arguments for a process that runs `script` without a search path and ends with this thread."""
    return "-I", str(START_CHILD), str(os.getpid()), str(script), *arguments


class ChildProcess:
    """A child that opens one file. `output`: what it prints. `returncode`: its exit status, negative for a signal."""

    def __init__(self, status: socket.socket, output: asyncio.StreamReader) -> None:
        self.output = output
        self.returncode: int | None = None
        self._status = status
        self._ending = asyncio.create_task(self._read_status())

    async def _read_status(self) -> int:
        loop, data = asyncio.get_running_loop(), b""
        with suppress(OSError):
            data = await loop.sock_recv(self._status, STATUS.size)
        self._status.close()
        (self.returncode,) = STATUS.unpack(data) if data else (-signal.SIGKILL,)  # a child ends with the fork server
        return self.returncode

    async def wait(self) -> int:
        """Wait until the child has ended, and return its exit status."""
        return await asyncio.shield(self._ending)

    def kill(self) -> None:
        """Make the fork server kill the child, if it is still running."""
        with suppress(OSError):
            self._status.shutdown(socket.SHUT_WR)


class ChildStarter:
    """Starts children that open untrusted files, each forked by one process that has imported `modules`.

    The fork server runs while the context is open. It starts again if it has died. It belongs to the thread that runs
    the event loop, and ends with that thread.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        self._modules = modules
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    async def __aenter__(self) -> "ChildStarter":
        self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.close()

    @asynccontextmanager
    async def child(self, script: Path, *arguments: str) -> AsyncIterator[ChildProcess]:
        """Run `script` in a new child. When the context ends, the child is killed, and has ended."""
        status, output = self._fork([str(script), *arguments])
        reader = asyncio.StreamReader(OUTPUT_BUFFER_BYTES)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), output)
        child = ChildProcess(status, reader)
        try:
            yield child
        finally:
            child.kill()
            try:
                await _finish(self._wait(child))
            finally:
                transport.close()

    async def _wait(self, child: ChildProcess) -> None:
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                await child.wait()
        except TimeoutError:  # the fork server hangs; all its children end with it
            self.close()
            await child.wait()

    def _fork(self, request: list[str]) -> tuple[socket.socket, FileIO]:
        """Ask the server for a child. Returns the socket for its exit status, and the pipe with its output."""
        status, server_status = socket.socketpair()
        request_read, request_write = os.pipe()
        output_read, output_write = os.pipe()
        with suppress(OSError):  # the user's pipes already have all the memory that Linux allows
            fcntl.fcntl(output_read, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        os.write(request_write, json.dumps(request).encode())
        os.close(request_write)
        status.setblocking(False)
        try:
            self._send((server_status.fileno(), request_read, output_write))
        finally:
            server_status.close()
            os.close(request_read)
            os.close(output_write)
        return status, FileIO(output_read)

    def _send(self, descriptors: Sequence[int]) -> None:
        """Send a message to the server, or to a new one if it has died."""
        if self._server is None or self._server.poll() is not None:
            self.start()
        assert self._control is not None
        try:
            socket.send_fds(self._control, [b"f"], descriptors)
        except (BrokenPipeError, ConnectionResetError):
            self.start()
            socket.send_fds(self._control, [b"f"], descriptors)

    def start(self) -> None:
        """Start the fork server. It need not be ready before children are requested."""
        self.close()
        self._control, control = socket.socketpair()
        self._control.setblocking(False)
        with control:
            self._server = subprocess.Popen(
                [sys.executable, "-B", *child_arguments(FORK_SERVER, *self._modules)],
                stdin=control.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=ENVIRONMENT,
                start_new_session=True,
            )

    def close(self) -> None:
        """End the fork server and all its children."""
        if self._control is not None:
            self._control.close()
        if self._server is not None:
            self._server.kill()
            self._server.wait()


async def _finish(work: Coroutine[None, None, None]) -> None:
    """Await `work`. If the caller is cancelled meanwhile, the CancelledError is raised after the end of `work`."""
    task, cancelled = asyncio.create_task(work), None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
