"""Every export, read back by the rules that its trainer documents.

Each test reads files as the trainer does: where it looks for videos, whether it enters subfolders, how it pairs a video
with its caption. `EXPECTED` is what every trainer must see: content of the video -> caption.
"""

import csv
import gc
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from sharecap_client.datasets.errors import StoreError
from sharecap_client.datasets.exports import shards
from sharecap_client.datasets.exports.clips import MAX_NAME_BYTES, Names
from sharecap_client.datasets.exports.export import describe, export, select
from sharecap_client.datasets.exports.table import FORMATS
from sharecap_client.datasets.rows import Row
from sharecap_client.datasets.store import Store

from tests.client.conftest import Sharecap
from tests.client.datasets.conftest import IDS, ONE_LINE, row

EXPECTED = {
    **{row_id: f"Caption of {row_id}." for row_id in IDS},
    "hostile.mp4": ONE_LINE,
    "edited.mp4": "TRIGGER, an edited caption.",
}
LEFT_OUT = {"decode_failed": 1, "excluded: same as plain.mp4": 1, "no caption": 1}
VIDEO_SUFFIXES = {".mp4", ".mov"}
Pairs = Iterator[tuple[Path, str]]
Reader = Callable[[Path], Pairs]


def videos_in(folder: Path, recursive: bool) -> list[Path]:
    """List videos as trainers do: by suffix, with or without subfolders, without hidden files."""
    paths = folder.rglob("*") if recursive else folder.iterdir()
    return [path for path in paths if path.suffix in VIDEO_SUFFIXES and not path.name.startswith(".")]


def beside(recursive: bool) -> Reader:
    """A text file of the same stem; each line is a caption, so there must be one."""

    def read(folder: Path) -> Pairs:
        for video in videos_in(folder, recursive):
            (line,) = video.with_suffix(".txt").read_text(encoding="utf-8").split("\n")
            yield video, line

    return read


def cosmos(folder: Path) -> Pairs:
    for video in videos_in(folder / "videos", recursive=False):
        assert video.suffix == ".mp4"
        yield video, (folder / "metas" / f"{video.stem}.txt").read_text(encoding="utf-8")


def aligned(folder: Path) -> Pairs:
    """Two files with as many lines; surrounding blanks are removed and nothing else."""
    prompts = (folder / "prompts.txt").read_text(encoding="utf-8").splitlines()
    paths = (folder / "videos.txt").read_text(encoding="utf-8").splitlines()
    assert all(prompts) and len(prompts) == len(paths)
    yield from zip((folder / path.strip() for path in paths), prompts, strict=True)


def captions_json(folder: Path) -> Pairs:
    captions = json.loads((folder / "captions.json").read_text())
    for video in videos_in(folder, recursive=False):
        (caption,) = captions[video.name]
        yield video, caption


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(path: Path) -> list[dict[str, Any]]:
    """Read records by the suffix of the file."""
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    return lines(path) if path.suffix == ".jsonl" else json.loads(path.read_text(encoding="utf-8"))


def listed(name: str, video: str, caption: str, folder: str = "", **constants: Any) -> Reader:
    """A table with a column for the video, relative to `folder` or absolute, and one for the caption."""

    def read(root: Path) -> Pairs:
        for record in table(root / name):
            for column, value in constants.items():
                assert record[column] == value or float(record[column]) == value
            text = record[caption]
            yield root / folder / record[video], text[0] if isinstance(text, list) else text

    return read


def from_working_directory(name: str, video: str, caption: str, **constants: Any) -> Reader:
    """A table whose paths the trainer opens as they stand, wherever it was started."""

    def read(root: Path) -> Pairs:
        for path, text in listed(name, video, caption, **constants)(Path("/nowhere") / root):
            assert path.is_absolute()
            yield path, text
        assert all(Path(record[video]).is_absolute() for record in table(root / name))

    return read


def through_list(name: str, caption: str, **constants: Any) -> Reader:
    """A text file whose line is `folder,listing`; paths of the listing are relative to the folder."""

    def read(root: Path) -> Pairs:
        folder, listing = (root / name).read_text().strip().split(",")
        for record in json.loads(Path(listing).read_text(encoding="utf-8")):
            assert {key: record[key] for key in constants} == constants
            assert isinstance(record[caption], list)
            yield Path(folder) / record["path"], record[caption][0]

    return read


def shard_members(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                content = tar.extractfile(member)
                assert content is not None
                yield key, suffix, content.read()


OPEN_SORA = {"num_frames": 100, "height": 360, "width": 640, "aspect_ratio": 0.5625, "resolution": 230400, "fps": 25}
SIZE = {"width": 640, "height": 360}
MOTION = {"resolution": SIZE, "num_frames": 100, "fps": 25.0}
READERS: dict[tuple[str, str], Reader] = {
    ("musubi", "txt"): beside(recursive=False),
    ("musubi", "jsonl"): from_working_directory("metadata.jsonl", "video_path", "caption"),
    ("diffusion-pipe", "txt"): beside(recursive=False),
    ("diffusion-pipe", "json"): captions_json,
    ("ai-toolkit", "txt"): beside(recursive=False),
    ("simpletuner", "txt"): beside(recursive=True),
    ("simpletuner", "parquet"): listed("metadata.parquet", "filename", "caption", **SIZE, num_frames=100, fps=25),
    ("simpletuner", "jsonl"): listed("metadata.jsonl", "filename", "caption", **SIZE, num_frames=100, fps=25),
    ("onetrainer", "txt"): beside(recursive=False),
    ("finetrainers", "txt"): aligned,
    ("cogvideo", "txt"): aligned,
    ("diffsynth", "csv"): listed("metadata.csv", "video", "prompt"),
    ("diffsynth", "jsonl"): listed("metadata.jsonl", "video", "prompt"),
    ("videox-fun", "json"): listed("metadata.json", "file_path", "text", type="video", **SIZE),
    ("easyanimate", "json"): listed("metadata.json", "file_path", "text", type="video", **SIZE),
    ("fastvideo", "json"): through_list("merge.txt", "cap", duration=4.0, **MOTION),
    ("open-sora", "csv"): from_working_directory("metadata.csv", "path", "text", **OPEN_SORA),
    ("open-sora", "parquet"): from_working_directory("metadata.parquet", "path", "text", **OPEN_SORA),
    ("open-sora-plan", "json"): through_list("data.txt", "cap", **MOTION),
    ("ltx", "jsonl"): listed("metadata.jsonl", "video", "caption"),
    ("ltx", "csv"): listed("metadata.csv", "video", "caption"),
    ("ltx", "json"): listed("metadata.json", "video", "caption"),
    ("cosmos-predict", "txt"): cosmos,
    ("videofolder", "csv"): listed("metadata.csv", "file_name", "caption", **SIZE),
    ("videofolder", "jsonl"): listed("metadata.jsonl", "file_name", "caption", **SIZE),
    ("videofolder", "parquet"): listed("metadata.parquet", "file_name", "caption", **SIZE),
}
LIBRARY_LEAVES_FILES_OPEN = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)

OWN_TESTS = {("sharegpt4video", "jsonl"), ("webdataset", "tar")}
OWN_TESTS |= {("srt", "srt"), ("vtt", "vtt"), ("markdown", "md")}


def test_every_format_has_a_reader() -> None:
    assert READERS.keys() | OWN_TESTS == {(trainer, kind) for trainer, kinds in FORMATS.items() for kind in kinds}


@pytest.mark.parametrize("trainer_and_kind", READERS, ids="-".join)
def test_a_trainer_sees_each_caption_with_its_video(
    trainer_and_kind: tuple[str, str], rows: list[Row], tmp_path: Path
) -> None:
    target, form = tmp_path / "an éxport", select(*trainer_and_kind)
    expected, left_out = EXPECTED, LEFT_OUT
    if form.suffix == ".mp4":
        expected = {row_id: caption for row_id, caption in EXPECTED.items() if row_id != "twin.mov"}
        left_out = {**LEFT_OUT, "not .mp4": 1}
    report = export(rows, form, target)
    assert (report.written, report.left_out) == (len(expected), left_out)
    pairs = list(READERS[trainer_and_kind](target))
    assert {video.read_text(): caption for video, caption in pairs} == expected
    assert len(pairs) == len(expected)


def test_text_files_are_utf8_with_lf(rows: list[Row], tmp_path: Path) -> None:
    for trainer, kind in READERS:
        target = tmp_path / f"{trainer}-{kind}"
        export(rows, select(trainer, kind), target)
        for path in target.rglob("*"):
            if path.suffix in (".txt", ".json", ".jsonl", ".csv"):
                assert b"\r" not in path.read_bytes() and path.read_text(encoding="utf-8")


def test_a_path_that_a_trainer_would_split_is_refused(rows: list[Row], tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="comma"):
        export(rows, select("fastvideo"), tmp_path / "cats, dogs")
    assert list(tmp_path.iterdir()) == [tmp_path / "clips"]


def test_sharegpt4video_has_the_fields_of_the_published_data_set(rows: list[Row], tmp_path: Path) -> None:
    export(rows, select("sharegpt4video"), tmp_path / "out")
    records = {record["video_id"]: record for record in lines(tmp_path / "out" / "captions.jsonl")}
    assert len(records) == len(EXPECTED)
    assert records["plain"] == {
        "video_id": "plain",
        "video_path": "plain.mp4",
        "timestamp": [0.0, 2.0],
        "keyframe": [0, 50],
        "captions": [
            {"idx": "0", "content": "A red star."},
            {"idx": "1", "content": "It moves\nright."},
            {"idx": "-1", "content": "Caption of plain.mp4."},
        ],
    }


@LIBRARY_LEAVES_FILES_OPEN
@pytest.mark.parametrize("kind", FORMATS["videofolder"])
def test_hugging_face_datasets_loads_a_videofolder(
    rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    export(rows, select("videofolder", kind), tmp_path / "out")
    loaded = datasets.load_dataset("videofolder", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    examples = list(loaded["train"].cast_column("video", datasets.Video(decode=False)))
    gc.collect()  # `datasets` leaves the closing of its files to the garbage collector
    assert {Path(one["video"]["path"]).read_text(): one["caption"] for one in examples} == EXPECTED
    assert {(one["width"], one["height"], one["duration_s"]) for one in examples} == {(640, 360, 4.0)}


@LIBRARY_LEAVES_FILES_OPEN
def test_webdataset_reads_the_shards(rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    webdataset = pytest.importorskip("webdataset")
    monkeypatch.setattr(shards, "SHARD_BYTES", 6000)
    export(rows, select("webdataset"), tmp_path / "out")
    paths = sorted(map(str, (tmp_path / "out").glob("*.tar")))
    assert len(paths) > 1 and paths[0].endswith("shard-000000.tar")
    samples = list(webdataset.WebDataset(paths, shardshuffle=False).decode())
    gc.collect()  # webdataset leaves the closing of its files to the garbage collector
    assert {(s.get("mp4") or s["mov"]).decode(): s["txt"] for s in samples} == EXPECTED
    assert [sample["__key__"] for sample in samples] == [f"{number:09}" for number in range(len(EXPECTED))]
    assert {sample["json"]["duration_s"] for sample in samples} == {4.0}
    assert [suffix for key, suffix, _ in shard_members(tmp_path / "out") if key == "000000000"] == [
        "mp4",
        "txt",
        "json",
    ]


@pytest.mark.parametrize(("trainer", "kind"), [("srt", "srt"), ("vtt", "vtt"), ("markdown", "md")])
def test_subtitles_for_looking_at(rows: list[Row], tmp_path: Path, trainer: str, kind: str) -> None:
    export(rows, select(trainer), tmp_path / "out")
    assert len(list((tmp_path / "out").rglob(f"*.{kind}"))) == len(EXPECTED)
    text = (tmp_path / "out" / "a folder" / f"plain.{kind}").read_text()
    assert "A red star." in text and not list((tmp_path / "out").rglob("*.mp4"))


def test_captions_are_written_beside_videos_that_stay_where_they_are(rows: list[Row], videos: Path) -> None:
    report = export(rows, select("simpletuner"), videos, "leave")
    assert report.left_out == {**LEFT_OUT, "shares its caption file with another video": 1}
    assert (videos / "a folder" / "plain.txt").read_text() == "Caption of a folder/plain.mp4."
    assert not (videos / "broken.txt").exists() and (videos / "plain.mp4").is_file()
    export(rows, select("diffusion-pipe", "json"), videos, "leave")
    assert json.loads((videos / "a folder" / "captions.json").read_text())["plain.mp4"]
    with pytest.raises(StoreError, match="folder of its own"):
        export(rows, select("cogvideo"), videos, "leave")


def test_an_export_appears_as_a_whole_and_replaces_only_an_export(rows: list[Row], tmp_path: Path) -> None:
    def interrupted() -> Iterator[Row]:
        yield from rows[:3]
        raise KeyboardInterrupt

    target, form = tmp_path / "out", select("musubi")
    with pytest.raises(KeyboardInterrupt):
        export(interrupted(), form, target)
    assert not target.exists() and not list(tmp_path.glob(".*"))
    export(rows, form, target)
    with pytest.raises(StoreError, match="--replace"):
        export(rows, form, target)
    export(rows[:1], form, target, replace=True)
    assert [path.name for path in videos_in(target, recursive=True)] == ["plain.mp4"]
    with pytest.raises(StoreError, match="not an export"):
        export(rows, form, tmp_path / "clips", replace=True)


def test_videos_are_linked_or_copied_and_missing_ones_are_counted(rows: list[Row], tmp_path: Path) -> None:
    Path(rows[0].video).unlink()
    report = export(rows, select("musubi"), tmp_path / "links")
    assert report.left_out["the video is missing"] == 1 and (tmp_path / "links" / "hostile.mp4").is_symlink()
    export(rows, select("musubi"), tmp_path / "copies", "copy")
    assert not any(path.is_symlink() for path in (tmp_path / "copies").iterdir())


@pytest.mark.parametrize("trainer", ["musubi", "webdataset"])
def test_a_remote_video_that_is_missing_is_counted(rows: list[Row], tmp_path: Path, trainer: str) -> None:
    far = rows[0].model_copy(update={"id": "far", "video": "memory://bucket/missing.mp4"})
    report = export([far, rows[1]], select(trainer), tmp_path / "out")
    assert (report.written, report.left_out) == (1, {"the video is missing": 1})


def test_a_video_at_a_url_is_fetched(rows: list[Row], tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://bucket/far.mp4", "wb") as file:
        file.write(b"far.mp4")
    far = rows[0].model_copy(update={"id": "far", "video": "memory://bucket/far.mp4"})
    export([far], select("musubi"), tmp_path / "out")
    assert (tmp_path / "out" / "far.mp4").read_bytes() == b"far.mp4"


def test_clips_of_unknown_size_are_left_out_only_if_the_trainer_needs_it(rows: list[Row], tmp_path: Path) -> None:
    unknown = [rows[0].model_copy(update={"width": None, "frames": None}), rows[1]]
    report = export(unknown, select("open-sora"), tmp_path / "one")
    assert (
        report.left_out == {"unknown width, frames": 1} and describe(report) == "1 left out (1 × unknown width, frames)"
    )
    assert export(unknown, select("ltx"), tmp_path / "two").written == 2


def test_nothing_to_export_is_an_error(rows: list[Row], tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nothing to export: 1 left out"):
        export(rows[-1:], select("musubi"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(StoreError, match="unknown trainer"):
        select("nobody")
    with pytest.raises(StoreError, match="txt, jsonl"):
        select("musubi", "csv")


@pytest.mark.parametrize(
    ("row_id", "name"),
    [
        ("../../etc/x.mp4", "etc/x.mp4"),
        ("/abs/x.MP4", "abs/x.mp4"),
        ("new\nline.mp4", "new_line.mp4"),
        ("a\\b:c?.mp4", "a/b_c_.mp4"),
        (".hidden/__x.mp4", "_hidden/_x.mp4"),
        ("https://host/v/1.mp4", "https_/host/v/1.mp4"),
        ("clip-7", "clip-7.mp4"),
        ("v1.5", "v1.5.mp4"),
    ],
)
def test_names_are_safe(tmp_path: Path, row_id: str, name: str) -> None:
    made = row(tmp_path, "x.mp4").model_copy(update={"id": row_id, "video": "dir/x.mp4"})
    assert Names(flat=False).choose(made) == name


def test_names_that_differ_in_case_or_suffix_only_do_not_share_a_caption_file(tmp_path: Path) -> None:
    one = row(tmp_path, "x.mp4")
    names = Names(flat=True)
    ids = ["a/b.mp4", "A/B.mp4", "a__b.mov", "é" * 300]
    chosen = [names.choose(one.model_copy(update={"id": i, "video": f"v{Path(i).suffix or '.mp4'}"})) for i in ids]
    assert chosen[:3] == ["a__b.mp4", "A__B-2.mp4", "a__b-3.mov"]
    assert len(chosen[3].encode()) <= MAX_NAME_BYTES + 4


def test_the_command(sharecap: Sharecap, store: Store, tmp_path: Path) -> None:
    target = tmp_path / "out"
    result = sharecap("export", store.directory, "--for", "diffsynth", "--as", "jsonl", "--to", target)
    assert (result.status, result.out) == (0, "")
    assert result.err == (
        f"8 captions for diffsynth in {target}, 3 left out "
        "(1 × decode_failed, 1 × excluded: same as plain.mp4, 1 × no caption)\n"
    )
    assert len(lines(target / "metadata.jsonl")) == len(EXPECTED)
    again = sharecap("export", store.directory, "--for", "diffsynth", "--to", target)
    assert (again.status, "add --replace" in again.err) == (1, True)
    assert "has no captions yet" in sharecap("export", tmp_path / "clips", "--for", "musubi", "--to", target).err


def test_the_help_names_every_trainer(sharecap: Sharecap) -> None:
    text = sharecap("export", "--help").out
    assert all(re.search(rf"\b{trainer}\b", text) for trainer in FORMATS)
