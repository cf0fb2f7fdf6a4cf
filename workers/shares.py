"""How much of a worker one API key may use: its share of the video slots, of the downloads and of the engine.

`workers/video/decoders.py` shares the decoders in the same way.

A worker has a bounded number of video slots and of concurrent downloads. One key holds at most `KEY_SHARE` of each, so
that a place is left for the next key. A download takes no video slot: a job with a URL enters `downloads` when it is
claimed, and changes to `slots` when its file is complete.

The engine runs as many sequences as it is sent. One key has at most `KEY_SEQUENCES` of them in the engine, where a beam
search counts as many as it has beams, but at most `KEY_SEQUENCES`; its other turns wait here, in their order. Text jobs
and videos of a key are counted separately, so that its short jobs do not wait for its videos.

Jobs without a key belong to an open service with one user. No share limits them, only the totals.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from service.contract.jobs import JobKind, Record
from service.contract.places import Places, share_of
from service.contract.store.turns import FETCH, queue_of
from service.contract.store.wakeups import RESUMED, TEXT_QUEUES
from workers.settings import KEY_SEQUENCES_ON_CPU, Settings

Permit = Callable[[int], AbstractAsyncContextManager[None]]
"""Waits until a turn with this many sequences may use the engine, and counts them until the context ends."""


class EngineShares:
    """Bounds how many sequences of one key the engine runs at once."""

    def __init__(self, per_key: int = KEY_SEQUENCES_ON_CPU) -> None:
        self._text, self._video = Places(None, per_key), Places(None, per_key)

    def permit(self, record: Record) -> Permit:
        """Return the permit for the turns of this job."""
        places = self._video if record.kind is JobKind.VIDEO else self._text
        return lambda sequences: places.hold(record.owner, sequences)


class JobPlace:
    """The place that one job holds: a download, then a video slot. A text job needs none."""

    def __init__(self, key: str | None, slots: Places, *, resumed: bool) -> None:
        self._key, self._slots, self._resumed = key, slots, resumed
        self._held: Places | None = None

    def take(self, places: Places) -> None:
        places.take(self._key)
        self._held = places

    async def enter_slot(self) -> None:
        """Exchange the download for a video slot. A job that was started before does not wait for one."""
        if self._held is self._slots:
            return
        if self._resumed:
            self._slots.take(self._key)
        else:
            await self._slots.wait(self._key)
        self.leave()
        self._held = self._slots

    def leave(self) -> None:
        """Give back what the job holds."""
        if self._held is not None:
            self._held.give_back(self._key)
            self._held = None


class VideoPlaces:
    """The video slots and the downloads of a worker."""

    def __init__(self, slots: int, settings: Settings) -> None:
        self._slot_count, self._download_count = slots, settings.downloads
        self._slots = Places(slots, share_of(slots, settings.key_share))
        self._downloads = Places(settings.downloads, share_of(settings.downloads, settings.key_share))

    @property
    def open_queues(self) -> tuple[str, ...]:
        """The RQ queues to listen to, in order of priority: text jobs are short and need no place.

        Resumed videos, whose worker is gone, may use twice the slots.
        """
        fetch = (FETCH,) if self._downloads.used < self._download_count else ()
        resumed = (RESUMED,) if self._slots.used < 2 * self._slot_count else ()
        video = (JobKind.VIDEO,) if self._slots.used < self._slot_count else ()
        return (*TEXT_QUEUES, *fetch, *resumed, *video)

    def room(self) -> dict[str, list[str]]:
        """Return the queues that there is room for, each with the keys that hold their whole share."""
        full = {FETCH: self._downloads.full_keys(), JobKind.VIDEO: self._slots.full_keys()}
        return {queue: full.get(queue, []) for queue in self.open_queues if queue != RESUMED}

    def enter(self, record: Record, *, resumed: bool) -> JobPlace:
        """Take the place that a claimed job needs first."""
        place = JobPlace(record.owner, self._slots, resumed=resumed)
        if record.kind is JobKind.VIDEO:
            place.take(self._downloads if queue_of(record) == FETCH else self._slots)
        return place
