"""How many videos are sent at the same time: as many as the service has use for.

The service is asked for more as long as jobs wait in its queue no longer than they run. So its next jobs are always
there, and its disk does not fill with waiting uploads. After a refusal everything pauses and the number is halved.
"""

import asyncio
import time

from sharecap_client.models import Job

START = 8
SHORT_WAIT_S = 0.5
"""A job that waited no longer than this was hardly queued at all."""
LONG_WAIT = 3
"""A wait of more than this many times the running time means that too many videos are waiting."""


class Pace:
    """Admits up to `limit` videos at the same time, between 1 and `maximum`."""

    def __init__(self, maximum: int) -> None:
        self.maximum, self.limit = maximum, float(min(START, maximum))
        self.active = 0
        self._changed = asyncio.Event()
        self._paused_until = 0.0
        self._reduced_at = 0.0

    async def enter(self) -> None:
        """Wait until one more video may be sent."""
        while self.active >= int(self.limit):
            self._changed.clear()
            await self._changed.wait()
        self.active += 1

    def leave(self) -> None:
        """A video has been captioned, or has failed."""
        self.active -= 1
        self._changed.set()

    async def ready(self) -> None:
        """Wait until the pause after a refusal is over."""
        while (pause_s := self._paused_until - time.monotonic()) > 0:
            await asyncio.sleep(pause_s)

    def refused(self, pause_s: float) -> None:
        """The service cannot take more: pause, and halve the limit, but only once for requests of the same moment."""
        now = time.monotonic()
        if now > self._reduced_at + pause_s:
            self.limit, self._reduced_at = max(1.0, self.limit / 2), now
        self._paused_until = max(self._paused_until, now + pause_s)

    def finished(self, job: Job) -> None:
        """Adapt the limit to how long a finished job waited in the queue, compared with how long it ran."""
        if job.started_at is None or job.finished_at is None:
            return
        waited_s = (job.started_at - job.created_at).total_seconds()
        ran_s = (job.finished_at - job.started_at).total_seconds()
        if waited_s <= max(ran_s, SHORT_WAIT_S):
            self.limit = min(self.maximum, self.limit + 1 / self.limit)
        elif waited_s > LONG_WAIT * max(ran_s, SHORT_WAIT_S):
            self.limit = max(1.0, self.limit - 1 / self.limit)
        self._changed.set()
