"""`sharecap batch` with a real gateway and a scripted worker: inputs, continuing, options, failures, what it prints."""

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from redis import Redis
from rich.console import Console
from sharecap_client.datasets.batch.progress import NOTE_EVERY_S, Display, Notes
from sharecap_client.datasets.rows import Row
from sharecap_client.datasets.store import Store
from sharecap_client.models import JobStatus

from service.contract.store.keys import JOBS
from tests.client.conftest import Sharecap
from tests.client.datasets import memory
from tests.client.live_service import LiveService

CAPTION = "A light square moves to the right."


@pytest.fixture(autouse=True)
def selected(live: LiveService, sharecap: Sharecap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARECAP_URL", live.url)


@pytest.fixture
def jobs(live: LiveService) -> Iterator["JobCount"]:
    with Redis.from_url(live.redis_url) as redis:
        yield JobCount(redis)


class JobCount:
    """Counts the jobs that the service has accepted since the test began."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._before = self._count()

    def _count(self) -> int:
        return int(self._redis.zcard(JOBS))

    @property
    def new(self) -> int:
        return self._count() - self._before


@pytest.fixture
def clips(tmp_path: Path, clip: Path) -> Path:
    """A folder with three videos, two of them in subfolders, and files that are not videos."""
    folder = tmp_path / "clips"
    for name in ("a.mp4", "b c/ä.mp4", "b c/d/e.MP4", ".hidden/f.mp4"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, folder / name)
    (folder / "notes.txt").write_text("no video")
    return folder


IDS = ["a.mp4", "b c/d/e.MP4", "b c/ä.mp4"]


def rows(run: Path) -> list[Row]:
    return sorted(Store.open(run).rows(), key=lambda row: row.id)


def ids(run: Path) -> list[str]:
    return [row.id for row in rows(run)]


def test_a_folder_is_captioned_once(sharecap: Sharecap, clips: Path, tmp_path: Path, jobs: JobCount) -> None:
    run = tmp_path / "run"
    result = sharecap("batch", clips, "--out", run, "--interval", "1")
    assert result.status == 0, result.err
    assert "3 of 3 captioned, 0 failed" in result.err and result.out == ""
    first = rows(run)
    assert [row.id for row in first] == IDS and {row.caption for row in first} == {CAPTION}
    assert first[0].video == str(clips / "a.mp4") and json.loads(first[0].options) == {"interval_s": 1.0}
    assert first[0].model == "test/model"
    assert (first[0].width, first[0].duration_s, first[0].frames, len(first[0].differentials)) == (160, 3.0, 30, 2)
    again = sharecap("batch", "--out", run)
    assert (again.status, jobs.new) == (0, 3) and "3 already there" in again.err
    assert rows(run) == first


def test_new_videos_are_added(sharecap: Sharecap, clips: Path, tmp_path: Path, jobs: JobCount) -> None:
    run = tmp_path / "run"
    sharecap("batch", clips, "--out", run)
    shutil.copy(clips / "a.mp4", clips / "z.mp4")
    assert sharecap("batch", clips, clips / "z.mp4", "--out", run).status == 0
    assert ids(run) == [*IDS, "z.mp4"] and jobs.new == 4
    assert len(list((run / "parts").iterdir())) == 1


def test_failed_videos_say_why_and_are_retried(sharecap: Sharecap, clips: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (clips / "broken.mp4").write_bytes(b"no video" * 100)
    result = sharecap("batch", clips, "--out", run)
    assert result.status == 3 and "1 failed" in result.err
    assert "broken.mp4: failed:" in result.err
    assert sharecap("batch", clips, "--out", run).status == 3
    status = sharecap("batch", "--status", run).out
    assert "4 rows: 3 completed, 1 failed\n  1 " in status
    assert json.loads(sharecap("batch", "--status", run, "--json").out)["failed"] == 1
    assert sharecap("batch", "--out", run, "--only-failed").status == 3
    (failed,) = (row for row in rows(run) if row.error)
    assert (failed.id, failed.attempt) == ("broken.mp4", 2)
    shutil.copy(clips / "a.mp4", clips / "broken.mp4")
    shutil.copy(clips / "a.mp4", clips / "new.mp4")
    assert sharecap("batch", "--out", run, "--only-failed").status == 0
    assert ids(run) == sorted([*IDS, "broken.mp4"])
    assert sharecap("batch", clips, "--out", run, "--retry-failed").status == 0
    assert ids(run) == sorted([*IDS, "broken.mp4", "new.mp4"])


def test_options_that_change_captions_need_redo(
    sharecap: Sharecap, clips: Path, tmp_path: Path, jobs: JobCount
) -> None:
    run = tmp_path / "run"
    sharecap("batch", clips, "--out", run, "--max-tokens", "100")
    refused = sharecap("batch", clips, "--out", run, "--max-tokens", "99")
    assert refused.status == 1 and "--redo" in refused.err
    assert sharecap("batch", clips, "--out", run, "--deadline", "100").status == 0 and jobs.new == 3
    assert sharecap("batch", clips, "--out", run, "--max-tokens", "99", "--redo").status == 0 and jobs.new == 6
    assert [json.loads(row.options) for row in rows(run)] == [{"max_tokens": 99}] * 3
    assert sharecap("batch", clips, "--out", run, "--max-tokens", "99", "--redo").status == 0 and jobs.new == 6
    sharecap("batch", clips, "--out", run, "--max-tokens", "100", "--redo")
    assert jobs.new == 9, "the first captions with these options are not used again"
    assert [(row.attempt, json.loads(row.options)) for row in rows(run)] == [(3, {"max_tokens": 100})] * 3
    assert sum(Store.open(run).parts.rows_in(number) for number in Store.open(run).parts.numbers()) == 3


def test_an_invalid_option_ends_the_run_at_once(sharecap: Sharecap, clips: Path, tmp_path: Path) -> None:
    result = sharecap("batch", clips, "--out", tmp_path / "run", "--interval", "1000")
    assert result.status == 1 and "--interval" in result.err
    assert sharecap("batch", clips, "--out", tmp_path / "run", "--interval", "1").status == 0


def test_an_input_without_videos_is_noticed(sharecap: Sharecap, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = sharecap("batch", tmp_path / "empty", "--out", tmp_path / "run")
    assert (result.status, "the input contains no videos" in result.err) == (0, True)


def test_a_note_is_not_repeated_within_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    notes = Notes()
    assert (notes.is_due("full"), notes.is_due("full"), notes.is_due("away")) == (True, False, True)
    now = NOTE_EVERY_S
    assert notes.is_due("full")


def test_a_terminal_shows_a_bar_the_numbers_and_the_last_caption() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Display(console) as display:
        display.counted(3)
        display.skipped()
        display.row(Row(id="a.mp4", video="/a.mp4", state=JobStatus.COMPLETED, caption="A red\nstar \x1b[31m."))
        display.note("the service is full")
    printed = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", console.file.getvalue())  # type: ignore[attr-defined]
    assert re.search(r"a\.mp4 +A red star \S*\[31m\.", printed) and "━" in printed
    assert "1 of 2 captioned, 0 failed, 1 already there" in printed and "the service is full" in printed


def test_json_events(sharecap: Sharecap, clips: Path, tmp_path: Path) -> None:
    result = sharecap("batch", clips, "--out", tmp_path / "run", "--json")
    events = [json.loads(line) for line in result.out.splitlines()]
    assert {event["id"] for event in events if event["event"] == "row"} == set(IDS)
    assert events[-1]["event"] == "end"
    assert (events[-1]["total"], events[-1]["completed"], events[-1]["completion_tokens"]) == (3, 3, 60)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
def test_tables_name_videos(sharecap: Sharecap, clips: Path, tmp_path: Path, suffix: str) -> None:
    records = [{"n": str(number), "path": name} for number, name in enumerate(["a.mp4", "b c/ä.mp4"])]
    table = clips / f"table.{suffix}"
    separator = "\t" if suffix == "tsv" else ","
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(records), table)
    elif suffix == "jsonl":
        table.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        table.write_text(
            "".join(f"{n}{separator}{path}\n" for n, path in [("n", "path"), ("0", "a.mp4"), ("1", "b c/ä.mp4")])
        )
    run = tmp_path / "run"
    missing = sharecap("batch", table, "--out", run)
    assert missing.status == 1 and "no value in the column `video`" in missing.err and "n, path" in missing.err
    assert sharecap("batch", table, "--out", run, "--video-column", "path").status == 0
    assert ids(run) == ["a.mp4", "b c/ä.mp4"]
    assert sharecap("batch", "--out", run).status == 0
    named = tmp_path / "named"
    assert sharecap("batch", table, "--out", named, "--video-column", "path", "--id-column", "n").status == 0
    assert [(row.id, row.video) for row in rows(named)] == [
        ("0", str(clips / "a.mp4")),
        ("1", str(clips / "b c/ä.mp4")),
    ]


def test_patterns_and_fsspec_urls(sharecap: Sharecap, clips: Path, tmp_path: Path) -> None:
    assert sharecap("batch", clips / "**/*.mp4", "--out", tmp_path / "pattern").status == 0
    assert ids(tmp_path / "pattern") == ["a.mp4", "b c/ä.mp4"]
    assert sharecap("batch", clips / "b c" / "*.mp4", "--out", tmp_path / "flat").status == 0
    assert [row.video for row in rows(tmp_path / "flat")] == [str(clips / "b c" / "ä.mp4")]
    assert sharecap("batch", f"file://{clips}/b c", "--out", tmp_path / "url").status == 0
    assert ids(tmp_path / "url") == ["d/e.MP4", "ä.mp4"]
    assert rows(tmp_path / "url")[0].video.startswith("file://")


def test_paths_on_standard_input(
    sharecap: Sharecap, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = tmp_path / "lines"
    lines.write_text(f"{clips}/a.mp4\n\n{clips}/missing.mp4\n")
    with lines.open() as file:
        monkeypatch.setattr("sys.stdin", file)
        result = sharecap("batch", "-", "--out", tmp_path / "run", "--root", clips)
    assert result.status == 3
    assert [(row.id, row.error and row.error.code) for row in rows(tmp_path / "run")] == [
        ("a.mp4", None),
        ("missing.mp4", "unreadable_file"),
    ]
    assert "standard input" in sharecap("batch", "--out", tmp_path / "run").err


def test_ctrl_c_ends_a_command_that_waits_for_standard_input(live: LiveService, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sharecap_client.cli", "batch", "-", "--out", tmp_path / "run", "--url", live.url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write("/no/such/file.mp4\n" * 64)
        process.stdin.flush()
        assert "no/such/file.mp4: failed" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(10) == 130
        finally:
            process.kill()


def test_ids_do_not_change_unnoticed(sharecap: Sharecap, clips: Path, tmp_path: Path, jobs: JobCount) -> None:
    run = tmp_path / "run"
    sharecap("batch", clips / "b c", "--out", run)
    assert "relative to" in sharecap("batch", clips, "--out", run).err
    (clips / "b c").rename(clips / "moved")
    assert sharecap("batch", clips / "moved", "--out", run).status == 0
    assert ids(run) == ["d/e.MP4", "ä.mp4"] and jobs.new == 2


def test_what_cannot_work_is_said_before_anything_is_sent(sharecap: Sharecap, clips: Path, tmp_path: Path) -> None:
    assert "--out DIR" in sharecap("batch", clips).err
    assert "no such file" in sharecap("batch", tmp_path / "missing", "--out", tmp_path / "run").err
    assert "no captions yet" in sharecap("batch", "--status", tmp_path / "none").err
    assert "not empty" in sharecap("batch", clips, "--out", clips).err
    unreachable = sharecap("batch", clips, "--out", tmp_path / "run2", "--url", "localhost:1")
    assert unreachable.status == 1 and "cannot reach" in unreachable.err
    assert not (tmp_path / "run2").exists()
    assert "cannot write to /proc/run" in sharecap("batch", clips, "--out", "/proc/run").err


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """`tests/soak/test_memory.py` compares 10,000 rows with a million."""
    few, many = (memory.peak_mb(rows, tmp_path / str(rows)) for rows in (1000, 4000))
    assert many < few + 30
