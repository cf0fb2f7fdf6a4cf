"""Commands of the model say at once that a model cannot be downloaded, and start without delay if it is cached.

Their help explains every argument and shows an example.
"""

import argparse
import importlib
from pathlib import Path

import httpx
import pytest
import typer
from sharecap_client.cli.errors import CommandFailed
from typer.testing import CliRunner

from service.contract import model_hub
from tests.conftest import needs_worker
from workers.commands import registration

pytestmark = needs_worker
COMMANDS = [
    ("generate", "--model", "owner/name", "--prompt", "x"),
    ("generate", "--prompt", "x", "--model=owner/name"),
    ("vllm-args", "owner/name"),
    ("dedupe", "captions.jsonl", "--encoder", "owner/name"),
]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, str]]:
    """The environment variables of each program that a command has become. The model hub cannot be reached."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    def head(url: str, **_: object) -> httpx.Response:
        assert "/owner/name/" in url
        raise httpx.ConnectError("no route")

    environments: list[dict[str, str]] = []
    monkeypatch.setattr(model_hub.httpx, "head", head)
    monkeypatch.setattr(registration, "become", lambda _, *__, **env: environments.append(env))
    return environments


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_model_of_the_hub_without_a_network(
    started: list[dict[str, str]], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    app = typer.Typer()
    registration.register(app)
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, CommandFailed)
    assert "cannot download owner/name" in str(result.exception) and not started
    snapshot = tmp_path / "hub/models--owner--name/snapshots/1"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert started == [model_hub.OFFLINE]


@pytest.mark.parametrize("name", ["generate", "vllm_args", "dedupe"])
def test_the_help_explains_every_argument_and_shows_an_example(name: str) -> None:
    parser: argparse.ArgumentParser = importlib.import_module(f"workers.commands.{name}")._parser()
    assert f"sharecap {name.replace('_', '-')} " in (parser.epilog or "")
    assert all(len(action.help or "") > 10 for action in parser._actions)
