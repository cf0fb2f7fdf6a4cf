"""How a parent process starts and ends a child that opens an untrusted file."""

import asyncio
import os
import signal
from asyncio.subprocess import Process
from contextlib import suppress
from pathlib import Path

START_CHILD = Path(__file__).with_name("start_child.py")
CHUNK_BYTES = 1 << 16


def child_arguments(script: Path, *arguments: str) -> tuple[str, ...]:
    """Return Python's arguments for a child that runs `script` without a search path and ends with this process."""
    return "-I", str(START_CHILD), str(os.getpid()), str(script), *arguments


async def kill_and_wait(child: Process) -> None:
    """Kill the child if it is still running, and return only after it has exited.

    If the caller is cancelled meanwhile, the CancelledError is raised after the child's exit, so no child is left over.
    """
    killing, cancelled = asyncio.create_task(_kill_and_wait(child)), None
    while not killing.done():
        try:
            await asyncio.shield(killing)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


async def _kill_and_wait(child: Process) -> None:
    if child.returncode is None:  # not `child.kill()`: it may reap the process before asyncio does
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
    assert child.stdout is not None
    while await child.stdout.read(CHUNK_BYTES):  # asyncio closes a pipe only after all of it has been read
        pass
    await child.wait()
