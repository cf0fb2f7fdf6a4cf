"""The client works without the server packages, and next to broken packages of the same names."""

import asyncio
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from sharecap_client import cli

from tests.client.test_terminal import working
from tests.service.scripted import ScriptedWorker, Served, video_events

CLIENT = Path(cli.__file__).parents[2]
SITE_PACKAGES = sysconfig.get_path("purelib")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a project that has its own packages `service` and `workers`, which cannot be imported."""
    for name in ("service", "workers"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('this package is broken')\n")
    return tmp_path


def sharecap(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the command in `folder`, with `folder` first on the search path.

    `-S` turns off the editable installation of the server packages; only their entry points remain.
    """
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SHARECAP_")},
        "PYTHONPATH": os.pathsep.join((".", str(CLIENT), SITE_PACKAGES)),
    }
    command = [sys.executable, "-S", "-m", "sharecap_client.cli", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=120)


async def test_caption_works(gateway: Served, worker: ScriptedWorker, folder: Path, clip: Path) -> None:
    async with working(worker, video_events):
        result = await asyncio.to_thread(sharecap, folder, "caption", str(clip), "--url", gateway.url)
    assert (result.returncode, result.stderr) == (0, "")
    assert "A light square moves to the right." in result.stdout


@pytest.mark.parametrize("arguments", [("--version",), ("caption", "--help"), ("recaption", "--help")])
def test_a_broken_server_package_does_not_disturb_client_commands(folder: Path, arguments: tuple[str, ...]) -> None:
    result = sharecap(folder, *arguments)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(("arguments", "status"), [(("--help",), 0), (("up",), 2)])
def test_a_broken_server_package_is_a_note_if_it_matters(folder: Path, arguments: tuple[str, ...], status: int) -> None:
    result = sharecap(folder, *arguments)
    assert result.returncode == status
    assert "sharecap: cannot load the commands of service.local.commands:register" in result.stderr
    assert "this package is broken" in result.stderr and "Traceback" not in result.stderr
