"""Which videos an input consists of, and which ids they get."""

import json
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from sharecap_client.datasets.batch.inputs import Inputs, Item
from sharecap_client.datasets.batch.selection import Failed, Selection
from sharecap_client.datasets.batch.session import set_inputs
from sharecap_client.datasets.batch.tables import Columns
from sharecap_client.datasets.errors import StoreError
from sharecap_client.datasets.index import Index
from sharecap_client.datasets.manifest import Manifest


def items(root: Path, *names: object, columns: Columns | None = None) -> list[Item]:
    return list(Inputs([str(name) for name in names], root, columns or Columns()))


def test_two_videos_with_one_id_are_an_error(tmp_path: Path) -> None:
    with Index() as index:
        selection = Selection(index, "{}", Failed.KEEP)
        assert selection.task(Item("1", "/a.mp4")) and selection.task(Item("1", "/a.mp4")) is None
        with pytest.raises(StoreError, match=r"the id 1: /a.mp4 and /b.mp4"):
            selection.task(Item("1", "/b.mp4"))


def test_a_table_whose_ids_repeat_is_refused_also_if_the_first_video_was_captioned_before(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("id,video\n1,a.mp4\n1,b.mp4\n")
    listed = items(tmp_path, table, columns=Columns("video", "id"))
    with Index() as index:
        Selection(index, "{}", Failed.KEEP).task(listed[0])
        later = Selection(index, "{}", Failed.KEEP)
        assert later.task(listed[0]) is None
        with pytest.raises(StoreError, match=r"a\.mp4 and .*b\.mp4"):
            later.task(listed[1])


@pytest.fixture
def buckets() -> list[str]:
    """Two remote folders with a video of the same name."""
    urls = ["memory://one/clips", "memory://two/clips"]
    for url in urls:
        with fsspec.open(f"{url}/a.mp4", "wb") as file:
            file.write(b"video")
    return urls


def test_ids_are_whole_urls_if_there_are_several(buckets: list[str], tmp_path: Path) -> None:
    assert [item.id for item in items(tmp_path, buckets[0])] == ["a.mp4"]
    several = items(tmp_path, *buckets)
    assert [item.id for item in several] == [item.video for item in several]
    assert len({item.id for item in several}) == 2


def test_the_urls_that_ids_are_relative_to_do_not_change_unnoticed(buckets: list[str]) -> None:
    manifest = Manifest(inputs=[f"{buckets[0]}/*.mp4"])
    set_inputs(manifest, [], empty=False)
    set_inputs(manifest, [f"{buckets[0]}/"], empty=False)
    for other in (buckets, buckets[1:]):
        with pytest.raises(StoreError, match="choose another --out"):
            set_inputs(manifest, other, empty=False)
    assert manifest.inputs == [f"{buckets[0]}/"]
    set_inputs(manifest, buckets, empty=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.jsonl", '{"video": "a"}\n\n{"video": \n', "list.jsonl: line 3 is not JSON"),
        ("list.jsonl", '{"video": "a"}\n\n[1]\n', "list.jsonl: line 3 is not a JSON object"),
        ("list.jsonl", '{"video": "a"}\n\n{"path": "b"}\n', "list.jsonl: line 3 has no value in the column `video`"),
        ("list.csv", 'video,n\n"a",1\n,2\n', "list.csv: line 3 has no value in the column `video`"),
    ],
)
def test_the_line_of_a_bad_row_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(StoreError, match=message):
        items(tmp_path, tmp_path / name)


def links_to_a_parent(folder: Path) -> None:
    (folder / "deep" / "up").symlink_to(folder)


def links_to_each_other(folder: Path) -> None:
    (folder / "deep" / "other").symlink_to(folder / "next")
    (folder / "next").mkdir()
    (folder / "next" / "back").symlink_to(folder / "deep")


def link_to_itself(folder: Path) -> None:
    (folder / "deep" / "self").symlink_to("self")


@pytest.mark.parametrize("make_links", [links_to_a_parent, links_to_each_other, link_to_itself])
def test_links_in_a_circle_end(tmp_path: Path, make_links: Callable[[Path], None]) -> None:
    folder = tmp_path / "clips"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.mp4", "deep/b.mp4"):
        (folder / name).touch()
    make_links(folder)
    ids = {item.id for item in items(folder, folder)}
    assert {"a.mp4", "deep/b.mp4"} <= ids and len(ids) <= 3, json.dumps(sorted(ids))
