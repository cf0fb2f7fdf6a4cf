"""The store of a data set: rows come back as they were written, once each, and every state on disk is a valid store."""

from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from sharecap_client.datasets import store as stores
from sharecap_client.datasets.batch.selection import failed_items
from sharecap_client.datasets.errors import StoreError
from sharecap_client.datasets.rows import SCHEMA, Row
from sharecap_client.datasets.store import Store
from sharecap_client.models import DifferentialCaption, ErrorInfo, JobStatus, Usage


def completed(name: str, caption: str = "A red star.", **fields: object) -> Row:
    return Row.model_validate({"id": name, "video": name, "state": "completed", "caption": caption, **fields})


def failed(name: str) -> Row:
    error = ErrorInfo(code="decode_failed", detail="broken", retryable=False)
    return Row(id=name, video=name, state=JobStatus.FAILED, error=error)


def ids(store: Store) -> list[str]:
    return [row.id for row in store.rows()]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "run", {"mode": "fast"})


def test_the_schema_has_the_fields_of_a_row() -> None:
    assert SCHEMA.names == list(Row.model_fields)
    assert SCHEMA.field("error").type.names == list(ErrorInfo.model_fields)
    assert SCHEMA.field("usage").type.names == list(Usage.model_fields)
    assert SCHEMA.field("differentials").type.value_type.names == list(DifferentialCaption.model_fields)


def test_rows_come_back_as_they_were_written(store: Store) -> None:
    row = completed(
        "ordner/ä b.mp4",
        'He said "hi",\nthen left. 红星',
        differentials=[{"keyframe": 0, "time_s": 0.0, "text": "A"}, {"keyframe": 1, "time_s": 1.5, "text": "B"}],
        keyframe_times_s=[0.0, 1.5],
        usage={"prompt_tokens": 3},
        finished_at=datetime(2026, 1, 2, 3, 4, 5, 678901, UTC),
        width=640,
        fps=29.97,
    )
    store.append([row, failed("b")])
    assert list(Store.open(store.directory).rows()) == [row, failed("b")]
    assert [row.caption for row in store.rows(["caption"])] == [row.caption, None]
    assert Store.open(store.directory).manifest == store.manifest
    assert pq.read_schema(store.parts.path(1)).names == SCHEMA.names


def test_a_later_row_replaces_an_earlier_one(store: Store) -> None:
    store.append([completed("a"), failed("b"), completed("c")])
    store.append([completed("b", "second")])
    assert [(row.id, row.state) for row in store.rows()] == [("a", "completed"), ("c", "completed"), ("b", "completed")]
    store.compact()
    assert ids(store) == ["a", "c", "b"]
    assert [store.parts.rows_in(number) for number in store.parts.numbers()] == [3]


def test_parts_are_merged_and_stay_few(store: Store) -> None:
    for number in range(40):
        store.append([completed(f"{number:03}")])
        store.merge_small()
    assert len(store.parts.numbers()) < 16
    assert ids(store) == [f"{number:03}" for number in range(40)]


def test_merged_parts_have_a_bounded_size(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MAX_PART_ROWS", 4)
    for number in range(5):
        store.append([completed(f"{number}a"), completed(f"{number}b")])
    store.compact()
    assert [store.parts.rows_in(number) for number in store.parts.numbers()] == [4, 4, 2]
    assert ids(store) == [f"{number}{letter}" for number in range(5) for letter in "ab"]


def test_every_file_that_a_killed_process_leaves_is_ignored(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.append([completed("a"), failed("b")])
    store.append([completed("b")])
    (store.parts.folder / ".part-00000003.parquet.tmp").write_bytes(b"PAR1 cut")
    monkeypatch.setattr(store.parts, "remove", lambda numbers: None)  # killed after a merge, before the removal
    store.compact()
    again = Store.open(store.directory)
    with again.index() as index:
        assert ids(again) == ["a", "b"] and index.counts() == {"completed": 2}
    with again.locked():
        again.compact()
    assert [path.name for path in again.parts.folder.iterdir()] == ["part-00000002.parquet"]


def test_a_reader_gets_every_row_while_parts_are_merged(store: Store) -> None:
    for number in range(7):
        store.append([failed(f"{number}a"), failed(f"{number}b")])
    items = failed_items(store)
    first = next(items)
    store.append([completed("0b"), completed("late")])
    store.merge_small()
    assert store.parts.numbers() == [8]
    assert [first.id, *(item.id for item in items)] == [f"{number}{letter}" for number in range(7) for letter in "ab"]


def test_parts_merged_between_listing_and_opening_are_listed_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):
        store.append([completed(str(number))])
    numbers = store.parts.numbers()
    reader = Store.open(store.directory)
    calls: list[list[int]] = []

    def merge_after_listing() -> list[int]:
        calls.append(numbers if not calls else store.parts.numbers())
        store.merge_small()
        return calls[-1]

    monkeypatch.setattr(reader.parts, "numbers", merge_after_listing)
    assert ids(reader) == [str(number) for number in range(8)] and len(calls) == 3


@pytest.mark.parametrize("content", [b"", b"PAR1 cut", None])
def test_a_damaged_part_is_named(store: Store, content: bytes | None) -> None:
    store.append([completed(str(number), caption=f"{number}" * 999) for number in range(50)])
    path = store.parts.path(1)
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + b"\0" * 200 + whole[400:] if content is None else content)
    with pytest.raises(StoreError, match=r"part-00000001\.parquet is damaged"):
        list(store.rows())


def test_rows_are_rewritten_and_removed(store: Store) -> None:
    store.append([completed("a"), completed("b")])
    store.append([completed("c")])
    store.rewrite(lambda row: None if row.id == "c" else row.model_copy(update={"edited": f"{row.caption} Edited."}))
    assert [(row.caption, row.text) for row in store.rows()] == [("A red star.", "A red star. Edited.")] * 2


def test_what_is_not_a_store_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no captions yet"):
        Store.open(tmp_path)
    with pytest.raises(StoreError, match="not empty"):
        Store.create(tmp_path)
    (store.directory / "run.json").write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        Store.open(store.directory)


def test_only_one_process_writes(store: Store) -> None:
    with store.locked(), pytest.raises(StoreError, match="another process"), Store.open(store.directory).locked():
        pass
    with store.locked():
        pass
