"""Lets short answers go first on an engine that is slow per step: turns of videos wait while short ones are answered.

vLLM's priority scheduling orders the requests that wait, but a step computes all running ones together. On a machine
without a GPU, four videos make each step several times slower, so a turn of a video is not even sent while a short
answer is running. Each turn waits at most `hold_s`, so videos advance whatever else arrives.

Turns that have waited are sent one by one, with pauses. Together, their images would make one long step, and the next
short answer would wait for it.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

PAUSES_IN_HOLD = 20
"""The pause between two turns is this part of `hold_s`."""


class ShortFirst:
    """Admits turns to the engine. `hold_s`: the longest wait of a patient turn, before its place among the others."""

    def __init__(self, hold_s: float) -> None:
        self._hold_s = hold_s
        self._short = 0
        self._no_short = asyncio.Event()
        self._no_short.set()
        self._last_short = -hold_s
        self._one_by_one = asyncio.Lock()

    @asynccontextmanager
    async def admit(self, *, patient: bool) -> AsyncIterator[None]:
        """Wait if the turn is patient; count it as a short answer, while the context is open, if it is not."""
        if patient:
            await self._wait()
            yield
            return
        self._short += 1
        self._no_short.clear()
        try:
            yield
        finally:
            self._last_short = time.monotonic()
            self._short -= 1
            if self._short == 0:
                self._no_short.set()

    async def _wait(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._hold_s):
                await self._no_short.wait()
        if self._short_lately():
            async with self._one_by_one:
                await asyncio.sleep(self._hold_s / PAUSES_IN_HOLD if self._short_lately() else 0)

    def _short_lately(self) -> bool:
        """Return whether a short answer is running, or ended so recently that another one may follow soon."""
        return self._short > 0 or time.monotonic() - self._last_short < self._hold_s
