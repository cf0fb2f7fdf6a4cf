"""`sharecap doctor` names what is missing, with a remedy; the exit status says whether it is necessary."""

import subprocess
from pathlib import Path

import pytest

from service.contract.sandbox.probe import NoSandbox
from service.local import diagnosis
from service.local.diagnosis import State
from tests.client.conftest import Sharecap, sharecap

__all__ = ["sharecap"]


def test_every_check_is_listed_with_a_verdict(sharecap: Sharecap, tmp_path: Path, redis_url: str) -> None:
    result = sharecap("doctor", "--data-dir", tmp_path, "--redis-url", redis_url)
    names = [line.split()[1] for line in result.out.splitlines() if line[:7].strip() in ("ok", "note", "missing")]
    assert names == ["packages:", "GPU:", "sandbox:", "disk:", "Redis:", "model:", "port:"]
    assert "Redis: the server of REDIS_URL answers" in result.out
    missing = "packages" in result.out.splitlines()[-1]  # in an installation without the worker's packages
    assert result.status == (1 if missing else 0)
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_has_a_remedy(sharecap: Sharecap, tmp_path: Path) -> None:
    result = sharecap("doctor", "--data-dir", tmp_path, "--redis-url", "redis://127.0.0.1:9/0", "--model", tmp_path)
    assert result.status == 1
    assert "the server of REDIS_URL does not answer" in result.out and "unset it" in result.out
    assert f"no model in {tmp_path}" in result.out
    assert result.out.splitlines()[-1].endswith("Redis, model")


def test_packages() -> None:
    finding = diagnosis.check_packages(("no_such_package", "sys"))
    assert (finding.state, finding.detail) == (State.MISSING, "not installed: no_such_package")
    assert "make setup" in finding.remedy


def test_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise NoSandbox("videos cannot be opened safely here")

    monkeypatch.setattr(diagnosis, "check_sandbox", fail)
    finding = diagnosis.check_confinement()
    assert finding.state is State.MISSING and "seccomp" in finding.remedy


def test_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert diagnosis.check_disk(tmp_path / "not" / "there").state in (State.OK, State.MISSING)
    monkeypatch.setattr(diagnosis, "FREE_BYTES", 1 << 60)
    finding = diagnosis.check_disk(tmp_path)
    assert finding.state is State.MISSING and "MIN_FREE_BYTES" in finding.remedy


@pytest.mark.parametrize(
    ("printed", "torch", "words"),
    [
        ("NVIDIA A, 81559\nNVIDIA A, 81559\n", "2.9.0", "2 × NVIDIA A, 81,559 MiB"),
        ("NVIDIA B, 8000\n", "2.9.0", "only 8,000 MiB"),
        ("NVIDIA A, 81559\n", "2.9.0+cpu", "requirements/gpu.txt"),
        ("", "2.9.0", "does not answer"),
    ],
)
def test_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, printed: str, torch: str, words: str) -> None:
    monkeypatch.setattr(diagnosis, "DRIVER", tmp_path)
    monkeypatch.setattr(diagnosis, "version", lambda _: torch)
    done = subprocess.CompletedProcess((), 0, printed)
    monkeypatch.setattr(diagnosis.subprocess, "run", lambda *_, **__: done)
    finding = diagnosis.check_gpu()
    assert words in f"{finding.detail} {finding.remedy}"
    assert finding.state is (State.NOTE if finding.remedy else State.OK)


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "DRIVER", Path("/no/such/file"))
    monkeypatch.setattr(diagnosis.shutil, "which", lambda _: None)
    finding = diagnosis.check_gpu()
    assert finding.state is State.NOTE and "--gpus all" in finding.remedy
