"""Which videos of the input are captioned: those that the store does not have yet, or failed ones again."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from sharecap_client.datasets.batch.inputs import Item
from sharecap_client.datasets.errors import StoreError
from sharecap_client.datasets.index import Index, Place
from sharecap_client.datasets.store import Store
from sharecap_client.models import JobStatus


class Failed(StrEnum):
    """What happens to videos that failed before."""

    KEEP = "keep"
    RETRY = "retry"
    ONLY = "only"


@dataclass(frozen=True)
class Task:
    """A video to caption. `attempt` counts from 1 how often that was tried."""

    item: Item
    attempt: int


class Selection:
    """Chooses the videos to caption. An id is chosen at most once."""

    def __init__(self, index: Index, options: str, failed: Failed) -> None:
        self._index, self._options, self._failed = index, options, failed

    def task(self, item: Item) -> Task | None:
        """Return the task for this video, or None if it needs none. A second call for the same id returns None.

        Raises StoreError if the input has another video with this id.
        """
        other = self._index.claim(item.id, item.video)
        if other != item.video:
            raise StoreError(
                f"two videos of the input have the id {item.id}: {other} and {item.video}. Name a column with unique "
                "ids with --id-column, or caption each input into a directory of its own"
            )
        place = self._index.get(item.id)
        if place is not None and not self._again(place):
            return None
        attempt = place.attempt + 1 if place is not None else 1
        self._index.put_one(item.id, Place(position=0, state=CHOSEN, attempt=attempt, options=self._options))
        return Task(item, attempt)

    def _again(self, place: Place) -> bool:
        if place.state == CHOSEN:
            return False
        if place.options != self._options:
            return self._failed is not Failed.ONLY or place.state != JobStatus.COMPLETED
        return self._failed is not Failed.KEEP and place.state != JobStatus.COMPLETED


CHOSEN = "chosen"
"""State of a row, in the index only, whose video this process captions or has captioned."""


def failed_items(store: Store) -> Iterator[Item]:
    """Yield the videos of the store that failed."""
    for row in store.rows([]):
        if row.state is not JobStatus.COMPLETED:
            yield Item(row.id, row.video)
