"""`sharecap dedupe RUN`: which rows of a run are excluded, and what a second time changes."""

from pathlib import Path
from typing import Any

import pytest
from sharecap_client.datasets.errors import StoreError
from sharecap_client.datasets.store import Store

from tests.client.datasets.conftest import row
from workers.commands.dedupe_store import filter_store


class EqualCaptions:
    """Drops captions that are equal to an earlier one. Stands in for the encoder and the pool."""

    def __init__(self) -> None:
        self._kept: list[str] = []

    def __call__(self, captions: list[str]) -> tuple[list[bool], list[int], list[float]]:
        results = [self._one(caption) for caption in captions]
        return [keep for keep, _ in results], [index for _, index in results], [float(not keep) for keep, _ in results]

    def _one(self, caption: str) -> tuple[bool, int]:
        if caption in self._kept:
            return False, self._kept.index(caption)
        self._kept.append(caption)
        return True, -1


@pytest.fixture
def store(tmp_path: Path) -> Store:
    captions: list[dict[str, Any]] = [
        {"caption": "A dog.", "edited": "ohwx, A dog."},
        {"caption": "A cat."},
        {"caption": "A dog."},
        {"caption": "A dog.", "excluded": "by hand"},
        {"caption": None, "state": "failed"},
        {"caption": "A cat."},
    ]
    made = Store.create(tmp_path / "run")
    made.append([row(tmp_path, f"{number}.mp4", **values) for number, values in enumerate(captions)])
    return made


def excluded(store: Store) -> list[str | None]:
    return [row.excluded for row in store.rows()]


@pytest.mark.parametrize("block", [1, 2, 100])
def test_later_equal_captions_are_excluded(store: Store, block: int) -> None:
    counts: list[int] = []
    assert filter_store(store.directory, EqualCaptions(), block, counts.append) == (4, 2)
    assert sum(counts) == 4
    same = ["says the same as 0.mp4 (cosine 1.000)", "by hand", None, "says the same as 1.mp4 (cosine 1.000)"]
    assert excluded(store) == [None, None, *same]
    assert next(row.edited for row in store.rows()) == "ohwx, A dog."


def test_a_second_time_decides_anew(store: Store) -> None:
    filter_store(store.directory, EqualCaptions(), 10, print)
    first = excluded(store)
    filter_store(store.directory, EqualCaptions(), 10, print)
    assert excluded(store) == first
    keep_all = lambda captions: ([True] * len(captions), [-1] * len(captions), [0.0] * len(captions))  # noqa: E731
    assert filter_store(store.directory, keep_all, 10, print) == (4, 4)
    assert excluded(store) == [None, None, None, "by hand", None, None]


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="has no captions yet"):
        filter_store(tmp_path, EqualCaptions(), 10, print)
