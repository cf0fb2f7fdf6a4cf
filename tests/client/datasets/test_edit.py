"""`sharecap edit`: what changes, what is recorded, and that the model's own words stay."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sharecap_client.datasets import edit
from sharecap_client.datasets.batch.writer import RowWriter
from sharecap_client.datasets.errors import StoreError
from sharecap_client.datasets.store import Store

from tests.client.conftest import Sharecap


def texts(store: Store) -> dict[str, str | None]:
    return {row.id: row.text for row in Store.open(store.directory).rows()}


def captions(store: Store) -> dict[str, str | None]:
    return {row.id: row.caption for row in Store.open(store.directory).rows()}


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ([edit.trigger("ohwx")], "ohwx, A dog. A DOG."),
        ([edit.trigger("dog")], "A dog. A DOG."),
        ([edit.prefix("Video: "), edit.suffix(" End.")], "Video: A dog. A DOG. End."),
        ([edit.replace("dog", "cat")], "A cat. A DOG."),
        ([edit.replace("dog", "cat", ignore_case=True)], "A cat. A cat."),
        ([edit.replace(".", r"\1")], r"A dog\1 A DOG\1"),
        ([edit.replace(r"A (\w+)\.", r"The \1!", regex=True)], "The dog! The DOG!"),
        ([edit.replace("dog", "ohwx"), edit.trigger("ohwx")], "A ohwx. A DOG."),
    ],
)
def test_edits(edits: list[edit.Edit], expected: str) -> None:
    assert edit.apply(edits, "A dog. A DOG.") == expected


@given(st.text(), st.text(min_size=1), st.text())
def test_a_plain_text_is_replaced_as_it_is(caption: str, find: str, replacement: str) -> None:
    assert edit.apply([edit.replace(find, replacement)], caption) == caption.replace(find, replacement)


@pytest.mark.parametrize(("find", "replacement"), [("(", "x"), ("x", r"\9"), ("", "x")])
def test_an_expression_that_is_not_valid_is_refused(find: str, replacement: str) -> None:
    with pytest.raises(StoreError):
        edit.replace(find, replacement, regex=True)


def test_the_command_shows_first_and_writes_on_demand(sharecap: Sharecap, store: Store) -> None:
    before = texts(store)
    shown = sharecap(
        "edit", store.directory, "--find", "Caption of", "--replace", "A video called", "--trigger", "ohwx"
    )
    assert "plain.mp4\n- Caption of plain.mp4.\n+ ohwx, A video called plain.mp4.\n" in shown.out
    assert "broken.mp4" not in shown.out and "nothing was written" in shown.err and texts(store) == before
    sharecap(
        "edit", store.directory, "--find", "Caption of", "--replace", "A video called", "--trigger", "ohwx", "--write"
    )
    after = texts(store)
    assert after["plain.mp4"] == "ohwx, A video called plain.mp4." and after["broken.mp4"] is None
    assert captions(store)["plain.mp4"] == "Caption of plain.mp4."


def test_edits_are_recorded_and_taken_back(sharecap: Sharecap, store: Store) -> None:
    original = captions(store)
    sharecap("edit", store.directory, "--prefix", "One. ", "--write")
    sharecap("edit", store.directory, "--prefix", "Two. ", "--write")
    recorded = Store.open(store.directory).manifest.edits
    assert recorded == [{"kind": "prefix", "text": "One. "}, {"kind": "prefix", "text": "Two. "}]
    assert texts(store)["plain.mp4"] == "Two. One. Caption of plain.mp4."
    assert "edit 1, recorded before: prefix: text 'One. '" in sharecap("edit", store.directory, "--undo", "--write").err
    assert texts(store)["plain.mp4"] == "One. Caption of plain.mp4."
    sharecap("edit", store.directory, "--undo", "--write")
    assert texts(store) == original == captions(store)


async def test_a_row_captioned_later_gets_the_edits(store: Store) -> None:
    first = next(store.rows())
    edit.record(store, [edit.suffix(" End.")])
    writer = RowWriter(Store.open(store.directory))
    await writer.add(first.model_copy(update={"id": "late"}))
    writer.close()
    assert texts(store)["late"] == "Caption of plain.mp4. End." and captions(store)["late"] == "Caption of plain.mp4."


def test_a_row_without_the_edits_gets_them_with_the_next_command(sharecap: Sharecap, store: Store) -> None:
    sharecap("edit", store.directory, "--suffix", " End.", "--write")
    late = next(row for row in store.rows() if row.id == "plain.mp4").model_copy(update={"id": "late", "edited": None})
    store.append([late])
    assert re.search(r"\+ .* End\.\n", sharecap("edit", store.directory).out)
    sharecap("edit", store.directory, "--write")
    assert texts(store)["late"] == "Caption of plain.mp4. End."


def test_half_a_replacement_is_refused(sharecap: Sharecap, store: Store) -> None:
    assert "belong together" in sharecap("edit", store.directory, "--find", "x").err
    assert "regular expression" in sharecap("edit", store.directory, "--find", "(", "--replace", "", "--regex").err
