"""Counts how often the process that captioned a clip has died, so that a clip that kills its process is given up.

`Deaths` runs as a small Ray actor, because the process that dies cannot count. A clip that was begun and not ended when
it is begun again was interrupted by a death. All clips that were in the engine at that moment have been begun, so one
death does not show which of them is the cause: see `workers/commands/ray_data/clips.py`.
"""

from collections import Counter
from typing import Any, Protocol


class Deaths:
    """For each clip, how often it was begun without being ended."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()

    def count(self, clip_id: str) -> int:
        """Return in how many deaths in a row this clip was being captioned."""
        return self._begun[clip_id]

    def begin(self, clip_id: str) -> None:
        self._begun[clip_id] += 1

    def end(self, clip_id: str) -> None:
        self._begun.pop(clip_id, None)


class DeathCounter(Protocol):
    """`Deaths` as a clip's process reaches it."""

    async def count(self, clip_id: str) -> int: ...

    async def begin(self, clip_id: str) -> None: ...

    async def end(self, clip_id: str) -> None: ...


class RemoteDeaths:
    """`Deaths` in the Ray actor behind `handle`."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def count(self, clip_id: str) -> int:
        deaths: int = await self._handle.count.remote(clip_id)
        return deaths

    async def begin(self, clip_id: str) -> None:
        await self._handle.begin.remote(clip_id)

    async def end(self, clip_id: str) -> None:
        await self._handle.end.remote(clip_id)
