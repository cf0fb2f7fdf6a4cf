"""The command itself: what it prints, how it ends. What fails does so in one line, without a traceback."""

import fcntl
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from sharecap_client.cli import app as cli
from sharecap_client.cli import run as cli_run

from service.local.up import CannotStart, UpSettings, free_port, running

ROOT = Path(__file__).parents[2]


@dataclass
class Ended:
    status: int
    out: str
    err: str


Sharecap = Callable[..., Ended]


@pytest.fixture
def sharecap(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Sharecap:
    """Runs the command in this process, with nothing set from outside."""
    for name in ("MODEL", "HOST", "PORT", "DATA_DIR", "REDIS_URL", "SHARECAP_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(ROOT)

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["sharecap", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        assert isinstance(code, int | None)
        told = capsys.readouterr()
        return Ended(code or 0, told.out, told.err)

    return run


def test_version() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    command = [sys.executable, "-m", "sharecap_client.cli", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"sharecap {declared}\n"


def test_help_names_every_command(sharecap: Sharecap) -> None:
    text = sharecap("--help").out
    for command in ("up", "serve", "worker", "caption", "recaption", "generate", "demo"):
        assert command in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("caption", "/no/such.mp4"), "cannot read /no/such.mp4: No such file or directory"),
        (("caption", "LICENSE", "--url", "http://127.0.0.1:9"), "cannot reach http://127.0.0.1:9"),
        (("caption", "LICENSE", "--url", "nonsense"), "cannot reach nonsense"),
        (("recaption", "a fox", "--url", "http://127.0.0.1:9"), "cannot reach http://127.0.0.1:9"),
        (("up", "--model", "./no-such-model"), "no model in ./no-such-model"),
        (("up", "--data-dir", "/proc/nowhere"), "cannot write to the data directory /proc/nowhere"),
        (("up", "--host", "192.0.2.1", "--port", "8123"), "cannot listen on 192.0.2.1 port 8123"),
        (("demo", "--model", "/no/such/model"), "no model in /no/such/model"),
    ],
)
def test_what_cannot_work_is_one_line_and_status_1(sharecap: Sharecap, arguments: tuple[str, ...], words: str) -> None:
    ended = sharecap(*arguments)
    assert ended.status == 1
    assert ended.err.startswith(f"error: {words}")
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [("caption",), ("caption", "x", "--mode", "slow"), ("up", "--port", "0"), ("nonsense",)]
)
def test_wrong_use_is_status_2(sharecap: Sharecap, arguments: tuple[str, ...]) -> None:
    ended = sharecap(*arguments)
    assert ended.status == 2
    assert "Traceback" not in ended.err


def test_an_unreachable_server_is_said_at_once(
    sharecap: Sharecap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:9/0")
    ended = sharecap("up", "--data-dir", str(tmp_path), "--port", str(free_port()))
    assert ended.status == 1
    assert ended.err.startswith("error: the server of REDIS_URL does not answer")


async def test_a_data_directory_belongs_to_one(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(CannotStart, match="another sharecap runs on"):
            async with running(UpSettings(tmp_path, free_port())):
                pass


def test_generate_hands_its_arguments_on(sharecap: Sharecap, monkeypatch: pytest.MonkeyPatch) -> None:
    become: list[tuple[str, list[str]]] = []

    def execve(program: str, arguments: list[str], env: dict[str, str]) -> None:
        become.append((program, arguments))
        raise SystemExit(0)

    monkeypatch.setattr(cli_run.os, "execve", execve)
    sharecap("generate", "--model", "DIR", "--help", "--json", "--unknown=1", "x")
    wanted = [
        sys.executable,
        "-P",
        "-m",
        "workers.commands.generate",
        "--model",
        "DIR",
        "--help",
        "--json",
        "--unknown=1",
        "x",
    ]
    assert become == [(sys.executable, wanted)]


def test_a_part_is_told_its_settings_by_its_environment(sharecap: Sharecap, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[list[str], dict[str, str]]] = []

    def execve(program: str, arguments: list[str], env: dict[str, str]) -> None:
        told.append((arguments[1:], env))
        raise SystemExit(0)

    monkeypatch.setattr(cli_run.os, "execve", execve)
    sharecap("serve", "--port", "8123", "--redis-url", "redis://r/0", "--data-dir", "d")
    sharecap("worker", "--model", "m/n")
    (gateway, gateway_env), (worker, worker_env) = told
    assert gateway == ["-P", "-m", "service"]
    assert worker == ["-P", "-m", "workers.main"]
    assert [gateway_env[name] for name in ("PORT", "REDIS_URL", "DATA_DIR")] == ["8123", "redis://r/0", str(ROOT / "d")]
    assert worker_env["MODEL"] == "m/n"
    assert "REDIS_URL" not in worker_env
