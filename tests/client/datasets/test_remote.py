"""`sharecap batch` with videos that are not local files: a file system in memory, and S3 if its packages are installed.

The memory file system tests everything that sharecap does itself. S3 needs `s3fs` and, as a server, `moto[server]`,
which are too large for every installation: `make soak` installs them, and the test is skipped without them.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from sharecap_client.datasets.rows import Row
from sharecap_client.datasets.store import Store

from tests.client.conftest import Sharecap
from tests.client.live_service import LiveService

NAMES = ("a.mp4", "b c/ä.mp4", "notes.txt")
VIDEOS = ["a.mp4", "b c/ä.mp4"]


@pytest.fixture(params=["memory", "s3"])
def bucket(request: pytest.FixtureRequest, clip: Path) -> Iterator[str]:
    """The URL of a bucket with two clips and a file that is not a video in the folder `clips`."""
    if request.param == "s3":
        request.getfixturevalue("s3_server")
    url = f"{request.param}://bucket"
    files, _ = fsspec.url_to_fs(url)
    files.mkdirs(f"{url}/clips/b c", exist_ok=True)
    for name in NAMES:
        files.pipe(f"{url}/clips/{name}", clip.read_bytes())
    yield url
    files.rm(url, recursive=True)


@pytest.fixture(scope="module")
def s3_server() -> Iterator[None]:
    """An S3 server, found by the environment variables that every S3 client reads."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            environment.setenv(name, "test")
        yield
    server.stop()


@pytest.fixture(autouse=True)
def selected(live: LiveService, sharecap: Sharecap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARECAP_URL", live.url)


def rows(run: Path) -> dict[str, Row]:
    return {row.id: row for row in Store.open(run).rows()}


def test_a_bucket_is_captioned_by_folder_pattern_and_table(sharecap: Sharecap, bucket: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    result = sharecap("batch", f"{bucket}/clips", "--out", folder)
    assert result.status == 0, result.err
    assert sorted(rows(folder)) == VIDEOS
    with fsspec.open(rows(folder)["b c/ä.mp4"].video, "rb") as file:
        assert len(file.read()) > 1000
    pattern = tmp_path / "pattern"
    assert sharecap("batch", f"{bucket}/clips/*.mp4", "--out", pattern).status == 0
    assert list(rows(pattern)) == ["a.mp4"]
    with fsspec.open(f"{bucket}/list.jsonl", "w") as file:
        file.writelines(json.dumps({"video": f"clips/{name}"}) + "\n" for name in (*VIDEOS, "missing.mp4"))
    table = tmp_path / "table"
    assert sharecap("batch", f"{bucket}/list.jsonl", "--out", table).status == 3
    listed = rows(table)
    assert {row_id: row.error and row.error.code for row_id, row in listed.items()} == {
        **{f"clips/{name}": None for name in VIDEOS},
        "clips/missing.mp4": "unreadable_file",
    }


def test_a_video_in_a_bucket_is_exported(sharecap: Sharecap, bucket: str, tmp_path: Path, clip: Path) -> None:
    assert sharecap("batch", f"{bucket}/clips", "--out", tmp_path / "run").status == 0
    assert sharecap("export", tmp_path / "run", "--for", "musubi", "--to", tmp_path / "out").status == 0
    assert (tmp_path / "out" / "b c__ä.mp4").read_bytes() == clip.read_bytes()


def test_an_unknown_protocol_and_a_missing_package_are_explained(sharecap: Sharecap, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "run")
    assert "cannot read nothing://bucket" in sharecap("batch", "nothing://bucket", *out).err
    assert "cannot read gs://bucket" in sharecap("batch", "gs://bucket", *out).err


def test_an_error_of_a_file_system_is_one_line(
    sharecap: Sharecap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file system has error classes of its own, for example those of botocore for missing credentials."""

    class NoCredentials(Exception):
        pass

    def fail(*arguments: object, **options: object) -> None:
        raise NoCredentials("log in first")

    for method in ("isdir", "open"):
        monkeypatch.setattr(fsspec.get_filesystem_class("memory"), method, fail)
    for name in ("memory://bucket/clips", "memory://bucket/list.csv"):
        result = sharecap("batch", name, "--out", tmp_path / "run")
        assert (result.status, result.err) == (1, f"error: cannot read {name}: NoCredentials: log in first\n")
