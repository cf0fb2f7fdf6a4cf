"""`pip install ./client` in an empty environment, in a folder with other packages named `service` and `workers`.

This downloads packages, so only `make soak` runs it. `test_installed_alone.py` does the same without a download.
"""

import asyncio
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.cutting_proxy import CuttingProxy
from tests.client.test_api import working
from tests.client.test_installed_alone import ASYNCHRONOUS, BLOCKING, CAPTION, CLIENT, make_broken_packages
from tests.docs.pages import fences
from tests.service.scripted import ScriptedWorker, Served, video_events

pytestmark = pytest.mark.skipif("SOAK" not in os.environ, reason="downloads packages; `make soak` runs it")
INSTALL_TIMEOUT_S = 300
README = dict(fences(CLIENT / "README.md"))
COMMANDS = README["console tested: tests/client/test_installation.py"].splitlines()
PROGRAM = README["python tested: tests/client/test_installation.py"]


def run(folder: Path, *command: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run a command in `folder`, with the programs of its environment first."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SHARECAP_", "PYTHON", "VIRTUAL"))}
    env["PATH"] = os.pathsep.join((str(folder / "venv" / "bin"), env["PATH"]))
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=INSTALL_TIMEOUT_S
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with packages that cannot be imported, and an environment made as the client's page says."""
    folder = tmp_path_factory.mktemp("project")
    make_broken_packages(folder)
    shutil.copytree(CLIENT, folder / "client", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build"))
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    assert COMMANDS[0] == "pip install ./client"
    installed = run(folder, *COMMANDS[0].split())
    assert installed.returncode == 0, installed.stderr
    return folder


def test_nothing_of_the_server_is_installed(project: Path) -> None:
    listed = run(project, "pip", "list", "--format", "freeze").stdout.lower()
    assert "sharecap-client" in listed and not re.search(
        r"^(sharecap|fastapi|redis|av|torch|pyarrow)[ =]", listed, re.M
    )
    assert run(project, "pip", "check").returncode == 0


async def test_the_command_captions(project: Path, gateway: Served, worker: ScriptedWorker, clip: Path) -> None:
    shutil.copy(clip, project / "clip.mp4")
    words = COMMANDS[1].replace("localhost:8000", gateway.url).split()
    async with working(worker, video_events):
        result = await asyncio.to_thread(run, project, *words)
    assert result.returncode == 0 and CAPTION in result.stdout, result.stderr


@pytest.mark.parametrize("program", [BLOCKING, ASYNCHRONOUS], ids=["blocking", "asynchronous"])
async def test_five_lines_caption_a_clip_over_a_stream_that_is_cut(
    project: Path, gateway: Served, worker: ScriptedWorker, clip: Path, program: str
) -> None:
    port = int(gateway.url.rpartition(":")[2])
    async with working(worker, video_events), CuttingProxy(port, cuts=1, cut_after=400).running() as proxy:
        result = await asyncio.to_thread(run, project, "python", "-c", program, proxy.url, str(clip))
    assert (result.returncode, result.stderr) == (0, "")
    assert len(proxy.resumed_after) >= 2
    assert result.stdout.splitlines() == ["queued", *(event.type for event in video_events("")), CAPTION]


async def test_the_program_of_the_page_runs(project: Path, gateway: Served, worker: ScriptedWorker, clip: Path) -> None:
    shutil.copy(clip, project / "clip.mp4")
    async with working(worker, video_events):
        program = PROGRAM.replace("http://localhost:8000", gateway.url)
        result = await asyncio.to_thread(run, project, "python", "-c", program)
    assert (result.stdout, result.stderr) == (f"{CAPTION}\n", "")


def test_the_printed_command_installs_what_is_missing(project: Path) -> None:
    missing = run(project, "sharecap", "batch", "--status", "run")
    match = re.fullmatch(r"error: not installed: pyarrow, fsspec\. Install them with: (.*)\n", missing.stderr)
    assert match, missing.stderr
    installed = run(project, *shlex.split(match[1]))
    assert installed.returncode == 0, installed.stderr
    assert run(project, "sharecap", "batch", "--status", "run").stderr.startswith("error: run has no captions yet")
