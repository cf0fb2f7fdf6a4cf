"""One try at one job: what is already known of it, and what it is given to work with.

An attempt begins by reading the job's events back: what they say is done is not done again.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from service.contract.events import Keyframes, fold
from service.contract.jobs import Job, Record, Timings
from service.contract.storage.local import keyframe_path, upload_path
from service.contract.store.store import Lease, Store
from workers.models.engine import Captioner, FrameEncoder
from workers.publisher import Publisher, retry_redis
from workers.roles.turns import Turns
from workers.settings import Settings
from workers.video.frames import DecodeLimits


@dataclass(frozen=True)
class WorkerContext:
    """What all jobs of a worker share. `decoders` bounds the videos decoded at once."""

    settings: Settings
    store: Store
    captioner: Captioner
    encoder: FrameEncoder
    decoders: asyncio.Semaphore
    decode_limits: DecodeLimits = field(default_factory=DecodeLimits)


@dataclass(frozen=True)
class Fetched:
    """The file that a URL gave."""

    bytes: int
    sha256: str


@dataclass
class Attempt:
    """The `number`-th try (from 1) at `record`; `job` is what the earlier ones have left."""

    tools: WorkerContext
    record: Record
    job: Job
    number: int
    keyframes_complete: bool
    publisher: Publisher
    turns: Turns
    timings: Timings = field(default_factory=Timings)
    fetched: Fetched | None = None
    """What this attempt has fetched, where the job came with a URL."""
    _inside: Counter[str] = field(default_factory=Counter)
    _since: dict[str, float] = field(default_factory=dict)

    @classmethod
    async def begin(cls, tools: WorkerContext, record: Record, lease: Lease, progress: asyncio.Event) -> "Attempt":
        """Read back what is known of the job. `progress` will be set once a text is finished."""

        async def read() -> "Attempt":
            stored = [event async for event in tools.store.events(record.id)]
            job = fold(record, stored)
            publisher = Publisher(tools.store, lease, stored[-1].seq if stored else 0, progress)
            attempt = cls(
                tools=tools,
                record=record,
                job=job,
                number=job.attempts + 1,
                keyframes_complete=any(isinstance(s.event, Keyframes) and s.event.complete for s in stored),
                publisher=publisher,
                turns=Turns(tools.captioner, publisher, f"{record.id}-{lease.epoch}"),
            )
            waited = datetime.now(UTC) - record.created_at
            attempt.timings.queued = max(0.0, waited.total_seconds())
            return attempt

        return await retry_redis(read)

    @property
    def upload(self) -> Path:
        return upload_path(self.tools.settings.data_dir, self.record.id)

    def remove_upload(self) -> None:
        """Remove the video: nothing will read it again."""
        self.upload.unlink(missing_ok=True)

    def keyframe_file(self, index: int) -> Path:
        return keyframe_path(self.tools.settings.data_dir, self.record.id, index)

    @contextmanager
    def timed(self, stage: Literal["decode", "keyframes", "captioning", "summary"]) -> Iterator[None]:
        """Add the time spent inside to the stage's; what several spend inside at once counts once."""
        if not self._inside[stage]:
            self._since[stage] = time.monotonic()
        self._inside[stage] += 1
        try:
            yield
        finally:
            self._inside[stage] -= 1
            if not self._inside[stage]:
                spent_s = time.monotonic() - self._since[stage]
                setattr(self.timings, stage, (getattr(self.timings, stage) or 0.0) + spent_s)
