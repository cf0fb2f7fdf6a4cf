"""The class that becomes an actor, and the command, without Ray. `tests/soak/test_ray.py` uses Ray."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import typer
from sharecap_client.cli.errors import CommandFailed
from sharecap_client.datasets.rows import SCHEMA
from typer.testing import CliRunner

from service.contract.jobs import VideoOptions
from tests.fake_captioner import FakeCaptioner, FakeEncoder
from tests.workers.clips import numbered, write
from workers.commands import registration
from workers.commands.ray_data import actor
from workers.commands.ray_data.deaths import Deaths
from workers.commands.ray_data.directory import INPUT_SCHEMA
from workers.process import Models
from workers.settings import Settings


class Method:
    """A method of an actor's handle."""

    def __init__(self, method: Any) -> None:
        self._method = method

    async def remote(self, *arguments: Any) -> Any:
        return self._method(*arguments)


class Handle:
    """The handle of an actor that runs `Deaths`."""

    def __init__(self) -> None:
        deaths = Deaths()
        self.count, self.begin, self.end = map(Method, (deaths.count, deaths.begin, deaths.end))


def load(settings: Settings) -> Models:
    return Models(FakeCaptioner(), FakeEncoder(), slots=2, stop=lambda: None)


async def test_batches_become_tables_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor, "_prepare_process", lambda: None)
    monkeypatch.setattr(actor, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(actor, "mkdtemp", lambda prefix: (tmp_path / f"{prefix}0").mkdir() or f"{tmp_path}/{prefix}0")
    left = tmp_path / f"{actor.DIRECTORY_PREFIX}dead"
    left.mkdir()
    video = str(write(tmp_path / "clip.mp4", [numbered(k) for k in range(30)], fps=10))
    options = VideoOptions(keyframes="interval")
    captioner = await asyncio.to_thread(actor.RayCaptioner, {"decoders": 2}, options, "{}", Handle(), load)
    batch = pa.Table.from_pylist([{"id": k, "video": video, "attempt": 1} for k in "abc"], schema=INPUT_SCHEMA)
    [table] = [table async for table in captioner(batch)]
    assert table.schema.equals(SCHEMA)
    assert table["id"].to_pylist() == ["a", "b", "c"]
    assert set(table["state"].to_pylist()) == {"completed"}
    assert not left.exists(), "the directory of a dead process is deleted"
    await asyncio.to_thread(captioner.stop)


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    registration.register(app)
    return app


def test_without_ray_the_command_says_what_to_install(app: typer.Typer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "ray" else object())
    result = CliRunner().invoke(app, ["ray", "clips/", "--out", "run", "--gpus", "0"])
    assert isinstance(result.exception, CommandFailed)
    assert "not installed: ray. `make ray`" in str(result.exception)
