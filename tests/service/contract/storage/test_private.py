"""Files and directories of the data directory are accessible to the service's user only."""

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.contract.storage.local import LocalStorage
from service.local.up import embedded_valkey
from tests.service.processes import gateway_process


def shared_paths(data_dir: Path) -> dict[str, str]:
    """Return the paths below `data_dir` that other users may access, with their modes."""
    modes = {path: path.lstat().st_mode for path in data_dir.rglob("*")}
    assert modes
    return {str(path): oct(mode) for path, mode in modes.items() if mode & 0o077}


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


async def test_the_embedded_server_the_gateway_and_their_logs_keep_files_private(tmp_path: Path, clip: Path) -> None:
    data_dir = tmp_path / "data"
    async with (
        embedded_valkey(data_dir) as redis_url,
        gateway_process(redis_url, data_dir) as (url, _),
        httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client,
    ):
        answer = await client.post("/captions", files={"file": clip.read_bytes()})
        assert answer.status_code == 202
        assert {"uploads", "keyframes", "valkey", "logs", "lock"} <= {path.name for path in data_dir.iterdir()}
        assert list((data_dir / "uploads").iterdir()) and list((data_dir / "valkey").rglob("*.aof"))
        assert shared_paths(data_dir) == {}
    assert shared_paths(data_dir) == {} and data_dir.stat().st_mode & 0o077 == 0


async def test_directories_of_earlier_versions_become_private(tmp_path: Path) -> None:
    for name in ("uploads", "keyframes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").write_bytes(b"video")
    LocalStorage(tmp_path).prepare()
    assert {oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {"0o700"}
