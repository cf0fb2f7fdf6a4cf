"""Decides when a decoder may start: a limit on their number, also for each API key, and enough free memory.

A decoder may use up to 2 GiB (`service/contract/sandbox/confine.py`), but normally uses about a tenth of that. If
memory runs out, the kernel kills a decoder first. The job then gets another attempt, but only after memory is free
again.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from service.contract.errors import DecoderKilled
from service.contract.places import Places, share_of
from service.contract.sandbox.confine import MAX_MEMORY_BYTES
from workers.video.memory import available_bytes

NORMAL_USE_BYTES = 256 << 20
"""What a running decoder may still come to use. Measured: 120 MB for 1080p (`bench/decode_memory.py`)."""
POLL_S = 0.5
AFTER_KILL_S = 1.0
MAX_WAIT_AFTER_KILL_S = 60.0

log = logging.getLogger("sharecap.worker")


class Decoders:
    """Runs at most `limit` decoders at a time. One API key has at most `key_share` of them, but at least one.

    The first decoder always starts. Another one starts beside it only if the memory for one at its limit is available,
    and NORMAL_USE_BYTES for each that runs: beside one decoder, 2.25 GiB.
    If a decoder is killed, its place stays taken until that much memory is available, or for MAX_WAIT_AFTER_KILL_S.
    """

    def __init__(self, limit: int, key_share: float = 1.0, available: Callable[[], int] = available_bytes) -> None:
        self._places = Places(limit, share_of(limit, key_share))
        self._available = available
        self._starting = asyncio.Lock()
        self._running = 0

    @asynccontextmanager
    async def place(self, key: str | None) -> AsyncIterator[None]:
        """Wait until a decoder may start for this key, and hold its place while the context is open."""
        async with self._places.hold(key):
            async with self._starting:
                await self._wait_for_memory()
                self._running += 1
            try:
                yield
            except DecoderKilled:
                await self._wait_after_kill()
                raise
            finally:
                self._running -= 1

    async def _wait_for_memory(self) -> None:
        """Wait until another decoder may start. The first one need not wait."""
        if self._running and not self._has_memory():
            available, needed = self._available() >> 20, self._needed_bytes() >> 20
            log.warning("a decoder waits for memory: %d MiB are available, %d MiB are needed", available, needed)
        while self._running and not self._has_memory():
            await asyncio.sleep(POLL_S)

    def _needed_bytes(self) -> int:
        return MAX_MEMORY_BYTES + self._running * NORMAL_USE_BYTES

    def _has_memory(self) -> bool:
        return self._available() >= self._needed_bytes()

    async def _wait_after_kill(self) -> None:
        log.warning("a decoder was killed; %d MiB of memory are available", self._available() >> 20)
        await asyncio.sleep(AFTER_KILL_S)
        try:
            async with asyncio.timeout(MAX_WAIT_AFTER_KILL_S):
                while not self._has_memory():
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            log.warning("memory is still short after %.0f s", MAX_WAIT_AFTER_KILL_S)
