"""The programs of `sharecap up` start in a folder that has its own packages `service` and `workers`."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from service.local.up import gateway, worker
from tests.conftest import needs_worker


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: a project whose packages have the same names and cannot be imported."""
    for name in ("service", "workers"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('this package is broken')\n")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(command: Sequence[str], **env: str) -> "subprocess.CompletedProcess[str]":
    """Run a program with settings that it refuses, so that it ends after its imports."""
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, check=False, timeout=120)


def test_the_gateway_starts(folder: Path) -> None:
    result = start(gateway({}, "127.0.0.1", 8000).command, MAX_UPLOAD_BYTES="0")
    assert result.returncode == os.EX_CONFIG
    assert "this package is broken" not in result.stderr


@needs_worker
def test_the_worker_starts(folder: Path) -> None:
    result = start(worker({}, None).command, MAX_UPLOAD_BYTES="0")
    assert result.returncode == os.EX_CONFIG
    assert "this package is broken" not in result.stderr
