"""Children that open untrusted files, as their parent ends them."""

import asyncio
import os
import signal
from asyncio.subprocess import Process
from contextlib import suppress

CHUNK_BYTES = 1 << 16


async def end(child: Process) -> None:
    """Kill the child where it still lives, and wait until it is gone.

    A caller that is cancelled meanwhile hears of it afterwards, so that no child is left to nobody.
    """
    ending, cancelled = asyncio.create_task(_end(child)), None
    while not ending.done():
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


async def _end(child: Process) -> None:
    if child.returncode is None:  # not `child.kill()`, which may reap it under asyncio's hands
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
    assert child.stdout is not None
    while await child.stdout.read(CHUNK_BYTES):  # a pipe closes once it has run dry
        pass
    await child.wait()
