"""The directory of a run: what Ray has completed becomes rows of the store, whatever was interrupted."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from sharecap_client.datasets import edit
from sharecap_client.datasets.errors import StoreError
from sharecap_client.datasets.manifest import Manifest
from sharecap_client.datasets.rows import Row, to_table
from sharecap_client.datasets.store import Store
from sharecap_client.models import JobStatus

from workers.commands.ray_data import directory as module
from workers.commands.ray_data.clips import Clip
from workers.commands.ray_data.directory import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(str(tmp_path / "run"))
    directory.save(directory.manifest())
    return directory


def rows(ids: Iterable[int], state: JobStatus = JobStatus.COMPLETED, attempt: int = 1) -> list[Row]:
    return [Row(id=str(k), video=f"/{k}.mp4", state=state, caption=f"caption {k}", attempt=attempt) for k in ids]


def write_as_ray(run: RunDirectory, name: str, content: list[Row], record: str = ".parquet") -> None:
    """Write a file of rows and its record as Ray does. Ray may add what it knows about types to the schema."""
    for folder in ("rows", "checkpoint"):
        Path(run.path("ray", folder)).mkdir(parents=True, exist_ok=True)
    table = to_table(content).replace_schema_metadata({"writer": "ray"})
    pq.write_table(table, run.path("ray", "rows", f"{name}-0.parquet"))
    pq.write_table(table.select(["id"]), run.path("ray", "checkpoint", f"{name}{record}"))


def ids(run: RunDirectory) -> list[str]:
    return [row.id for row in Store.open(Path(run.root)).rows()]


def test_complete_files_become_rows_of_the_store(run: RunDirectory) -> None:
    write_as_ray(run, "x_000000", rows([1, 2]))
    write_as_ray(run, "x_000001", rows([3]))
    write_as_ray(run, "x_000002", rows([4]), record=".pending.parquet")
    Path(run.path("ray", "rows", "x_000003-0.parquet")).write_bytes(b"half a file")
    seen: set[str] = set()
    assert [row.id for row in run.finished(seen)] == ["1", "2", "3"]
    assert not list(run.finished(seen))
    run.settle()
    assert ids(run) == ["1", "2", "3"]
    assert sorted(path.name for path in Path(run.root).iterdir()) == ["parts", "run.json"]
    run.settle()
    assert run.part_numbers() == [1]


def test_a_file_with_both_records_is_complete(run: RunDirectory) -> None:
    write_as_ray(run, "x_000000", rows([1]), record=".pending.parquet")
    write_as_ray(run, "x_000000", rows([1]))
    run.settle()
    assert ids(run) == ["1"]


@pytest.mark.parametrize("deleted", [0, 1, 2])
def test_an_interrupted_settle_is_repeated(run: RunDirectory, monkeypatch: pytest.MonkeyPatch, deleted: int) -> None:
    write_as_ray(run, "x_000000", rows([1, 2]))
    delete, calls = RunDirectory._delete, []

    def interrupted(self: RunDirectory, path: str) -> None:
        if len(calls) == deleted:
            raise KeyboardInterrupt
        calls.append(path)
        delete(self, path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunDirectory, "_delete", interrupted)
        run.settle()
    run.settle()
    run.compact()
    assert ids(run) == ["1", "2"]
    assert not Path(run.path("ray")).exists()


def test_a_row_replaces_the_earlier_one_with_its_id(run: RunDirectory) -> None:
    write_as_ray(run, "x_000000", rows([1]) + rows([2], JobStatus.FAILED))
    run.settle()
    with run.index() as index:
        assert index.counts() == {"completed": 1, "failed": 1}
        place = index.get("2")
        assert place and (place.state, place.attempt, place.options) == ("failed", 1, "{}")
    write_as_ray(run, "y_000000", rows([2], attempt=2))
    run.settle()
    run.compact()
    store = Store.open(Path(run.root))
    assert [(row.id, row.attempt) for row in store.rows()] == [("1", 1), ("2", 2)]
    assert sum(map(store.parts.rows_in, store.parts.numbers())) == 2


def test_rows_get_the_edits_of_the_run(run: RunDirectory) -> None:
    manifest = run.manifest()
    manifest.edits = [edit.prefix("ohwx, ")]
    run.save(manifest)
    write_as_ray(run, "x_000000", rows([1]))
    run.settle()
    assert [(row.caption, row.text) for row in Store.open(Path(run.root)).rows()] == [("caption 1", "ohwx, caption 1")]


def test_a_damaged_part_is_named(run: RunDirectory) -> None:
    write_as_ray(run, "x_000000", rows([1]))
    run.settle()
    Path(run.path("parts", "part-00000001.parquet")).write_bytes(b"PAR1 cut")
    with pytest.raises(StoreError, match=r"part-00000001\.parquet is damaged"):
        run.index()


def test_parts_have_a_bounded_size(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PART_ROWS", 4)
    for number in range(5):
        write_as_ray(run, f"x_{number:06}", rows(range(3 * number, 3 * number + 3)))
    run.settle()
    parts = Store.open(Path(run.root)).parts
    assert [parts.rows_in(number) for number in parts.numbers()] == [6, 6, 3]


def test_the_input_has_a_row_for_each_clip(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INPUT_ROWS", 2)
    clips = [Clip(str(k), f"/{k}.mp4", attempt=k) for k in range(5)]
    assert run.write_input(clips) == 5
    tables = [pq.read_table(path) for path in sorted(Path(run.path("ray", "input")).iterdir())]
    assert [table.num_rows for table in tables] == [2, 2, 1]
    assert [Clip(**record) for table in tables for record in table.to_pylist()] == clips
    assert RunDirectory(run.name).write_input([]) == 0


def test_only_a_store_or_an_empty_directory_can_be_used(run: RunDirectory, tmp_path: Path) -> None:
    assert RunDirectory(run.name).manifest().run == Manifest.load(Path(run.root)).run  # type: ignore[union-attr]
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(StoreError, match="not empty and not a store"):
        RunDirectory(str(tmp_path)).manifest()
    with pytest.raises(StoreError, match="cannot write"):
        RunDirectory("nonsense://bucket/run")
    with run.locked(), pytest.raises(StoreError, match="another process"), RunDirectory(run.name).locked():
        pass
