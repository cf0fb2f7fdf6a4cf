"""Lets short answers go first on an engine that is slow per step: turns of videos wait while short ones are answered.

vLLM's priority scheduling orders the requests that wait, but a step computes all running ones together. On a machine
without a GPU, four videos make each step several times slower, so a turn of a video is not even sent while a short
answer is running. Each turn waits at most `hold_s`, so videos advance whatever else arrives.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class ShortFirst:
    """Admits turns to the engine. `hold_s`: the longest wait of a patient turn."""

    def __init__(self, hold_s: float) -> None:
        self._hold_s = hold_s
        self._short = 0
        self._no_short = asyncio.Event()
        self._no_short.set()

    @asynccontextmanager
    async def admit(self, *, patient: bool) -> AsyncIterator[None]:
        """Wait if the turn is patient; count it as a short answer, while the context is open, if it is not."""
        if patient:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._hold_s):
                    await self._no_short.wait()
            yield
            return
        self._short += 1
        self._no_short.clear()
        try:
            yield
        finally:
            self._short -= 1
            if self._short == 0:
                self._no_short.set()
