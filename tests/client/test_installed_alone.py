"""The client works without the server packages, and next to broken packages of the same names.

`test_installation.py` installs it into an empty environment.
"""

import asyncio
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from sharecap_client import cli

from tests.client.cutting_proxy import CuttingProxy
from tests.client.test_api import working
from tests.service.scripted import ScriptedWorker, Served, video_events

CAPTION = "A light square moves to the right."
BLOCKING = """
import sys
from sharecap_client import Client
with Client(sys.argv[1]) as client:
    job = client.caption(sys.argv[2])
    for event in job:
        print(event.type)
    print(job.wait().caption)
"""
ASYNCHRONOUS = """
import asyncio, sys
from sharecap_client import AsyncClient
async def main():
    async with AsyncClient(sys.argv[1]) as client:
        job = await client.caption(sys.argv[2])
        async for event in job:
            print(event.type)
        print((await job.wait()).caption)
asyncio.run(main())
"""
CLIENT = Path(cli.__file__).parents[2]
SITE_PACKAGES = sysconfig.get_path("purelib")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a project that has its own packages `service` and `workers`, which cannot be imported."""
    make_broken_packages(tmp_path)
    return tmp_path


def make_broken_packages(folder: Path) -> None:
    for name in ("service", "workers"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise RuntimeError('this package is broken')\n")


def python(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run Python in `folder`, with `folder` first on the search path.

    `-S` turns off the editable installation of the server packages; only their entry points remain.
    """
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SHARECAP_")},
        "PYTHONPATH": os.pathsep.join((".", str(CLIENT), SITE_PACKAGES)),
    }
    command = [sys.executable, "-S", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=120)


def sharecap(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return python(folder, "-m", "sharecap_client.cli", *arguments)


async def test_caption_works(gateway: Served, worker: ScriptedWorker, folder: Path, clip: Path) -> None:
    async with working(worker, video_events):
        result = await asyncio.to_thread(sharecap, folder, "caption", str(clip), "--url", gateway.url)
    assert result.returncode == 0
    assert re.fullmatch(r"job cap_[0-9a-f]{32}\n", result.stderr)
    assert CAPTION in result.stdout


@pytest.mark.parametrize("program", [BLOCKING, ASYNCHRONOUS], ids=["blocking", "asynchronous"])
async def test_five_lines_caption_a_clip_over_a_stream_that_is_cut(
    gateway: Served, worker: ScriptedWorker, folder: Path, clip: Path, program: str
) -> None:
    port = int(gateway.url.rpartition(":")[2])
    async with working(worker, video_events), CuttingProxy(port, cuts=1, cut_after=400).running() as proxy:
        result = await asyncio.to_thread(python, folder, "-c", program, proxy.url, str(clip))
    assert (result.returncode, result.stderr) == (0, "")
    assert len(proxy.resumed_after) >= 2
    lines = result.stdout.splitlines()
    assert lines == ["queued", *(event.type for event in video_events("")), CAPTION]


@pytest.mark.parametrize("arguments", [("--version",), ("caption", "--help"), ("recaption", "--help")])
def test_a_broken_server_package_does_not_disturb_client_commands(folder: Path, arguments: tuple[str, ...]) -> None:
    result = sharecap(folder, *arguments)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(("arguments", "status"), [(("--help",), 0), (("up",), 1)])
def test_a_broken_server_package_is_a_note_if_it_matters(folder: Path, arguments: tuple[str, ...], status: int) -> None:
    result = sharecap(folder, *arguments)
    assert result.returncode == status
    assert "sharecap: cannot load the commands of service.local.commands:register" in result.stderr
    assert "this package is broken" in result.stderr and "Traceback" not in result.stderr
    assert arguments != ("up",) or "`sharecap up` is part of the server, which is not installed here" in result.stderr
