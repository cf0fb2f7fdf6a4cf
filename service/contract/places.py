"""Places that API keys share, such as video slots, decoders and probes: a total, and a bound for each key."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary


class Places:
    """A number of places, each held for a key. `total`: None means unlimited. `per_key` is what one key may hold."""

    def __init__(self, total: int | None, per_key: int) -> None:
        self._total, self._per_key = total, per_key
        self._held: Counter[str] = Counter()
        self._changed = asyncio.Event()
        self._turnstiles: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.used = 0

    def take(self, key: str | None, count: int = 1) -> None:
        """Take places, also beyond the limits."""
        self.used += count
        if key is not None:
            self._held[key] += count

    def give_back(self, key: str | None, count: int = 1) -> None:
        self.used -= count
        if key is not None:
            self._held[key] -= count
            if not self._held[key]:
                del self._held[key]
        self._changed.set()
        self._changed = asyncio.Event()

    def full_keys(self) -> list[str]:
        """Return the keys that hold all they may."""
        return [key for key, held in self._held.items() if held >= self._per_key]

    async def wait(self, key: str | None, count: int = 1) -> None:
        """Take places as soon as there is room. Callers with the same key are served in their order."""
        turnstile = self._turnstiles.setdefault(key or "", asyncio.Lock())  # exists as long as a caller refers to it
        async with turnstile:
            while not self._has_room(key, count):
                await self._changed.wait()
            self.take(key, count)

    def _has_room(self, key: str | None, count: int) -> bool:
        total_ok = self._total is None or self.used + count <= self._total
        return total_ok and (key is None or self._held[key] + count <= self._per_key)

    @asynccontextmanager
    async def hold(self, key: str | None, count: int = 1) -> AsyncIterator[None]:
        """Hold places while the context is open; a `count` above the key's limit counts as the limit."""
        count = min(count, self._per_key)
        await self.wait(key, count)
        try:
            yield
        finally:
            self.give_back(key, count)


def share_of(total: int, share: float) -> int:
    """Return how many of `total` places one key may hold: at least one."""
    return max(1, int(total * share))
