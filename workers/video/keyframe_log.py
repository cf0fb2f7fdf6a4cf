"""The keyframes of a job while they are being selected: selection appends to the log, captioning reads from it."""

import asyncio
from collections.abc import AsyncGenerator

from service.contract.jobs import Keyframe


class KeyframeLog:
    """A growing list of keyframes. Readers wait for keyframes that are not selected yet."""

    def __init__(self, keyframes: list[Keyframe], complete: bool) -> None:
        self.entries = keyframes
        self.complete = complete
        self._error: BaseException | None = None
        self._changed = asyncio.Event()

    def add(self, keyframes: list[Keyframe], complete: bool) -> None:
        """Append keyframes. `complete` means that no more will follow."""
        self.entries += keyframes
        self.complete = complete
        self._wake_readers()

    def fail(self, error: BaseException) -> None:
        """Raise `error` in readers that ask for a keyframe beyond the existing ones."""
        self._error = error
        self._wake_readers()

    def _wake_readers(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def has(self, index: int) -> bool:
        """Wait until keyframe `index` exists or cannot exist any more. Returns whether it exists."""
        while len(self.entries) <= index and not self.complete and self._error is None:
            await self._changed.wait()
        return index < len(self.entries)

    async def get(self, index: int) -> Keyframe | None:
        """Wait for keyframe `index` and return it, or None if there are fewer. Raises the error of `fail`."""
        if await self.has(index):
            return self.entries[index]
        if self._error is not None:
            raise self._error
        return None

    async def shots(self) -> AsyncGenerator[int, None]:
        """Yield the index of each shot's first keyframe as soon as it exists. Always yields 0, without waiting."""
        yield 0
        index = 1
        while await self.has(index):
            if self.entries[index].shot != self.entries[index - 1].shot:
                yield index
            index += 1

    async def all(self) -> list[Keyframe]:
        """Wait until the log is complete and return all keyframes."""
        while await self.get(len(self.entries)) is not None:
            pass
        return self.entries
