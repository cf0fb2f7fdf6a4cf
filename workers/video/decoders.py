"""Decides when a decoder may start: a limit on their number, and enough free memory.

A decoder may use up to 2 GiB (`service/contract/sandbox/confine.py`), but normally uses about a tenth of that. If
memory runs out, the kernel kills a decoder first. The job then gets another attempt, but only after memory is free
again.
"""

import asyncio
import logging
from collections.abc import Callable
from types import TracebackType

from service.contract.errors import DecoderKilled
from service.contract.sandbox.confine import MAX_MEMORY_BYTES
from workers.video.memory import available_bytes

NORMAL_USE_BYTES = 256 << 20
"""What a running decoder may still come to use. Measured: 120 MB for 1080p (`bench/decode_memory.py`)."""
POLL_S = 0.5
AFTER_KILL_S = 1.0
MAX_WAIT_AFTER_KILL_S = 60.0

log = logging.getLogger("sharecap.worker")


class Decoders:
    """An asynchronous context manager around the work of one decoder. It starts at most `limit` at a time.

    The first decoder always starts. Another one starts beside it only if the memory for one at its limit is available.
    If a decoder is killed, its place stays taken until that much memory is available, or for MAX_WAIT_AFTER_KILL_S.
    """

    def __init__(self, limit: int, available: Callable[[], int] = available_bytes) -> None:
        self._semaphore = asyncio.Semaphore(limit)
        self._available = available
        self._starting = asyncio.Lock()
        self._running = 0

    async def __aenter__(self) -> None:
        await self._semaphore.acquire()
        try:
            async with self._starting:
                while self._running and not self._has_memory():
                    await asyncio.sleep(POLL_S)
                self._running += 1
        except BaseException:
            self._semaphore.release()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, DecoderKilled):
                await self._wait_after_kill()
        finally:
            self._running -= 1
            self._semaphore.release()

    def _has_memory(self) -> bool:
        return self._available() >= MAX_MEMORY_BYTES + self._running * NORMAL_USE_BYTES

    async def _wait_after_kill(self) -> None:
        log.warning("a decoder was killed; %d MiB of memory are available", self._available() >> 20)
        await asyncio.sleep(AFTER_KILL_S)
        try:
            async with asyncio.timeout(MAX_WAIT_AFTER_KILL_S):
                while not self._has_memory():
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            log.warning("memory is still short after %.0f s", MAX_WAIT_AFTER_KILL_S)
