"""The `sharecap` command: output and exit status. Expected errors are one line without a traceback."""

import fcntl
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
from sharecap_client.cli import run as cli_run
from sharecap_client.cli.app import PANELS, SERVER_COMMANDS, create_app, registered_commands

from service.local.up import CannotStart, UpSettings, free_port, local_service
from tests.client.conftest import ROOT, Sharecap
from tests.conftest import needs_worker

COMMANDS = ("caption", "recaption", "clip", "clips", "jobs", "show", "watch", "cancel", "rm")


def test_version() -> None:
    projects = [tomllib.loads((ROOT / name / "pyproject.toml").read_text())["project"] for name in (".", "client")]
    (declared,) = {project["version"] for project in projects}
    assert f"sharecap-client=={declared}" in projects[0]["dependencies"]
    command = [sys.executable, "-m", "sharecap_client.cli", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"sharecap {declared}\n"


def test_help_lists_all_commands(sharecap: Sharecap) -> None:
    text = sharecap("--help").out
    assert set(registered_commands()) == SERVER_COMMANDS
    for command in (*COMMANDS, *SERVER_COMMANDS):
        assert command in text
    in_panels = {name for names in PANELS.values() for name in names}
    assert {*typer.main.get_group(create_app()).commands, *SERVER_COMMANDS} <= in_panels


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("caption", "/no/such.mp4"), "cannot read /no/such.mp4: No such file or directory"),
        (("caption", "LICENSE", "--url", "nonsense:9"), "cannot reach http://nonsense:9"),
        (("up", "--model", "./no-such-model"), "no model in ./no-such-model"),
        (("up", "--data-dir", "/proc/nowhere"), "cannot write to the data directory /proc/nowhere (No such file"),
        (("up", "--host", "192.0.2.1", "--port", "8123"), "cannot listen on 192.0.2.1 port 8123"),
        (("demo", "--model", "/no/such/model"), "no model in /no/such/model"),
    ],
)
def test_an_expected_error_is_one_line_and_status_1(sharecap: Sharecap, arguments: tuple[str, ...], words: str) -> None:
    result = sharecap(*arguments)
    assert result.status == 1
    assert result.err.startswith(f"error: {words}")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [("caption",), ("caption", "x", "--mode", "slow"), ("up", "--port", "0"), ("nonsense",)]
)
def test_a_usage_error_is_status_2(sharecap: Sharecap, arguments: tuple[str, ...]) -> None:
    result = sharecap(*arguments)
    assert result.status == 2
    assert "Traceback" not in result.err


async def test_a_data_directory_in_use_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(CannotStart, match="another sharecap uses"):
            async with local_service(UpSettings(tmp_path, free_port())):
                pass


@needs_worker
def test_generate_passes_its_arguments_on(sharecap: Sharecap, monkeypatch: pytest.MonkeyPatch) -> None:
    executed: list[tuple[str, list[str]]] = []

    def execve(program: str, arguments: list[str], env: dict[str, str]) -> None:
        executed.append((program, arguments))
        raise SystemExit(0)

    monkeypatch.setattr(cli_run.os, "execve", execve)
    sharecap("generate", "--model", "DIR", "--help", "--json", "--unknown=1", "x")
    expected = [
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
    assert executed == [(sys.executable, expected)]


@needs_worker
def test_serve_and_worker_pass_settings_in_the_environment(
    sharecap: Sharecap, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    executed: list[tuple[list[str], dict[str, str]]] = []

    def execve(program: str, arguments: list[str], env: dict[str, str]) -> None:
        executed.append((arguments[1:], env))
        raise SystemExit(0)

    monkeypatch.setattr(cli_run.os, "execve", execve)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # the model hub is not asked
    sharecap("serve", "--port", "8123", "--redis-url", redis_url, "--data-dir", "d")
    sharecap("worker", "--model", "m/n", "--redis-url", redis_url)
    (gateway, gateway_env), (worker, worker_env) = executed
    assert gateway == ["-P", "-m", "service"]
    assert worker == ["-P", "-m", "workers.main"]
    assert [gateway_env[name] for name in ("PORT", "REDIS_URL", "DATA_DIR")] == ["8123", redis_url, str(ROOT / "d")]
    assert (worker_env["MODEL"], worker_env["REDIS_URL"]) == ("m/n", redis_url)


def test_a_missing_package_is_one_line(sharecap: Sharecap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_run.importlib.util, "find_spec", lambda name: None)
    for command in ("worker", "generate", "vllm-args", "dedupe"):
        result = sharecap(command)
        assert result.status == 1
        assert result.err.startswith("error: not installed: ") and "requirements/" in result.err
        assert result.err.count("\n") == 1
    of_client = [
        ("batch", "x"),
        ("export", "x", "--for", "srt", "--to", "y"),
        ("edit", "x"),
        ("eval", "x", "--reference", "y"),
    ]
    for arguments in (*of_client, ("stats", "x")):
        result = sharecap(*arguments)
        assert (result.status, result.err.count("\n")) == (1, 1)
        extras = "datasets,stats" if arguments[0] == "stats" else "datasets"
        assert re.search(rf"^error: not installed: .* -m pip install .*client\[{extras}\]", result.err)
    shown = sharecap("generate", "--help")
    assert shown.status == 0
    assert "--prompt TEXT" in shown.out and "not installed: " in shown.out


def test_help_is_broken_at_the_width_of_the_terminal_only(sharecap: Sharecap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert "reading the video again. `sharecap clips ID` lists the clips of a job." in sharecap("clip", "--help").out
    assert "the server that the service uses: a key is valid only there." in sharecap("keys", "add", "--help").out


@pytest.mark.parametrize("command", [*COMMANDS, *sorted(SERVER_COMMANDS - {"generate", "vllm-args", "dedupe"})])
def test_every_command_has_a_help_text(sharecap: Sharecap, command: str) -> None:
    result = sharecap(command, "--help")
    assert result.status == 0
    assert len(result.out.splitlines()) > 8
