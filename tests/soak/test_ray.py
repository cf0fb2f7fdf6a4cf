"""`sharecap ray` with the demo model on this machine, while its processes are killed: the rows are those of `batch`.

`SOAK=1` runs it. It needs the packages of `make ray`, which also contain an S3 server.
"""

import asyncio
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from pyarrow import fs
from sharecap_client.datasets.rows import Row
from sharecap_client.datasets.store import Store

from tests.soak import test_batch
from tests.soak.test_batch import SOAK, Command, DemoCluster
from workers.demo.scenes import make_scene, write_clip

pytestmark = [
    SOAK,
    pytest.mark.skipif(find_spec("ray") is None or find_spec("moto") is None, reason="needs `make ray`"),
]
CLIPS = int(os.environ.get("SOAK_RAY_CLIPS", "60"))
ACTOR, ENGINE = "ray::MapWorker(MapBatches(RayCaptioner))", "VLLM::EngineCore"
RUN_TIMEOUT_S = 900
END_TIMEOUT_S = 30


@dataclass
class RayCommand:
    """`sharecap ray` in its own process; started again after it was killed."""

    arguments: list[str]
    log: Path
    env: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        command = [sys.executable, "-m", "sharecap_client.cli", "ray", "--json", "--gpus", "0", *self.arguments]
        with self.log.open("ab") as log:
            env = {**os.environ, **self.env, "RAY_AUTH_MODE": "disabled"}
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=env)

    def reported(self) -> list[str]:
        """Return the ids of the rows that all processes have reported."""
        lines = self.log.read_text().splitlines()
        return [json.loads(line)["id"] for line in lines if line.startswith('{"event": "row"') and line.endswith("}")]

    def rows(self) -> int:
        return len(self.reported())

    def wait_for_rows(self, number: int) -> None:
        deadline = time.monotonic() + RUN_TIMEOUT_S
        while self.rows() < number:
            assert time.monotonic() < deadline and self.process.poll() is None, self.log.read_text()[-3000:]
            time.sleep(0.2)

    def kill_child(self, name: str) -> None:
        """Kill the first process below this one whose command line starts with `name`."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            if command_line(child).startswith(name):
                child.kill()
                return
        raise AssertionError(f"{name} does not run")

    def kill(self) -> None:
        """Kill the command, and check that actors and engines end. Ray's own processes can take a minute longer."""
        started: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            started = psutil.Process(self.process.pid).children(recursive=True)
        ours = [child for child in started if running(child) and command_line(child).startswith((ACTOR, ENGINE))]
        self.process.kill()
        self.process.wait()
        _, alive = psutil.wait_procs(ours, END_TIMEOUT_S)
        still_running = [child for child in alive if running(child)]
        for child in filter(running, started):
            child.kill()
        assert not still_running

    def finish(self) -> int:
        return self.process.wait(RUN_TIMEOUT_S)


def running(process: psutil.Process) -> bool:
    """Return whether a process runs. One that has ended can be left as a zombie by a parent that ignores it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn clips, and one file that is not a video."""
    folder = tmp_path_factory.mktemp("clips")
    for seed in range(CLIPS):
        write_clip(folder / f"{seed:03}.mp4", make_scene(seed))
    (folder / "broken.mp4").write_bytes(b"no video" * 1000)
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The comparable content of the rows of `sharecap batch` for these clips."""

    async def caption(directory: Path) -> None:
        async with DemoCluster(directory) as cluster:
            await cluster.start_gateway()
            await cluster.start_workers(1)
            started = time.monotonic()
            command = Command(cluster, [str(folder), "--out", str(directory / "run")], directory / "batch.log")
            async with test_batch.running(command):
                assert await command.finish(RUN_TIMEOUT_S) == 3
            print(f"\nbatch: {CLIPS} clips in {time.monotonic() - started:.0f} s with a running service")

    directory = tmp_path_factory.mktemp("batch")
    asyncio.run(caption(directory))
    return content(Store.open(directory / "run").rows())


def content(rows: Iterator[Row]) -> dict[str, Any]:
    """Return id -> what does not differ between two runs. Each id must occur once.

    The gateway refuses a file that is not a video before it has a model; `sharecap ray` knows its model from the start.
    """
    listed = list(rows)
    differ = {False: {"job", "finished_at"}, True: {"job", "finished_at", "model"}}
    by_id = {row.id: row.model_dump(mode="json", exclude=differ[row.error is not None]) for row in listed}
    assert len(by_id) == len(listed)
    return by_id


@pytest.fixture
def start() -> Iterator[Callable[..., RayCommand]]:
    commands: list[RayCommand] = []

    def starting(*arguments: str, log: Path, **env: str) -> RayCommand:
        commands.append(RayCommand(list(arguments), log, env))
        commands[-1].start()
        return commands[-1]

    yield starting
    for command in commands:
        command.kill()


def test_the_rows_are_those_of_batch_whatever_is_killed(
    folder: Path, expected: dict[str, Any], start: Callable[..., RayCommand], tmp_path: Path
) -> None:
    run, started = tmp_path / "run", time.monotonic()
    command = start(str(folder), "--out", str(run), log=tmp_path / "ray.log")
    for share, name in ((0.15, ACTOR), (0.35, ENGINE)):
        command.wait_for_rows(int(share * CLIPS))
        command.kill_child(name)
    command.wait_for_rows(int(0.6 * CLIPS))
    command.kill()
    rows_before = command.rows()
    command.start()
    assert command.finish() == 3, command.log.read_text()[-3000:]
    store = Store.open(run)
    assert content(store.rows()) == expected
    assert sum(map(store.parts.rows_in, store.parts.numbers())) == CLIPS + 1
    assert len(set(command.reported())) == command.rows(), "a finished clip is not captioned again"
    print(f"\nray: {CLIPS} clips, three kills: {time.monotonic() - started:.0f} s; {rows_before} rows before the last")
    check_exports(run, tmp_path)
    check_nothing_left(command, folder, run)


def check_exports(run: Path, tmp_path: Path) -> None:
    """`sharecap export` and `stats` read the directory."""
    for arguments in (["export", str(run), "--for", "musubi", "--to", str(tmp_path / "training")], ["stats", str(run)]):
        subprocess.run([sys.executable, "-m", "sharecap_client.cli", *arguments], check=True, capture_output=True)
    texts = {path.stem: path.read_text() for path in (tmp_path / "training").glob("*.txt")}
    assert texts == {Path(row.id).stem: row.caption for row in Store.open(run).rows() if row.caption}


def check_nothing_left(command: RayCommand, folder: Path, run: Path) -> None:
    """The same command again has nothing to do, and does not start Ray; other options are refused."""
    rows, started = command.rows(), time.monotonic()
    command.start()
    assert command.finish() == 3
    assert command.rows() == rows
    print(f"nothing to do: {time.monotonic() - started:.1f} s")
    command.arguments += ["--mode", "fast"]
    command.start()
    assert command.finish() == 1
    assert "other options change the captions" in command.log.read_text()


@pytest.fixture
def s3() -> Iterator[dict[str, str]]:
    """The environment of programs that use a local S3 server. It has an empty bucket `runs`."""
    from moto.server import ThreadedMotoServer  # noqa: PLC0415

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    yield {**keys, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    server.stop()


def test_videos_and_output_in_s3(
    folder: Path, expected: dict[str, Any], s3: dict[str, str], start: Callable[..., RayCommand], tmp_path: Path
) -> None:
    files = fs.S3FileSystem(
        access_key="key",
        secret_key="secret",
        endpoint_override=s3["AWS_ENDPOINT_URL"],
        allow_bucket_creation=True,
    )
    files.create_dir("runs/clips")
    names = sorted(path.name for path in folder.iterdir())[-16:]
    for name in names:
        fs.copy_files(str(folder / name), f"runs/clips/{name}", destination_filesystem=files)
    command = start("s3://runs/clips/", "--out", "s3://runs/a/run", log=tmp_path / "ray.log", **s3)
    command.wait_for_rows(4)
    command.kill()
    command.start()
    assert command.finish() == 3, command.log.read_text()[-3000:]
    fs.copy_files("runs/a/run", str(tmp_path / "run"), source_filesystem=files)
    rows = content(Store.open(tmp_path / "run").rows())
    assert {row_id: row | {"video": expected[row_id]["video"]} for row_id, row in rows.items()} == {
        name: expected[name] for name in names
    }
    assert files.get_file_info("runs/a/run/ray").type is fs.FileType.NotFound
    command.start()
    assert command.finish() == 3
    last = json.loads(command.log.read_text().splitlines()[-1])
    assert (last["skipped"], last["completed"]) == (len(names), 0)
