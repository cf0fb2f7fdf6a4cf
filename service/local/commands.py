"""`sharecap up`, `serve`, `worker`, `demo` and `keys`: the commands of the server packages.

The parts of the service run as other programs (`python -m service`, `python -m workers.main`). This module starts them
and imports neither, so that the command itself starts quickly.
"""

import asyncio
import sys
import tempfile
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text
from sharecap_client.api import Client
from sharecap_client.cli.errors import CommandFailed
from sharecap_client.cli.run import become, run
from sharecap_client.cli.terminal import caption_video, recaption_prompt

from service.local import key_commands
from service.local.supervisor import Supervisor
from service.local.up import LOCAL_HOST, UpSettings, free_port, running

DEFAULT_PORT = 8000
DEMO_PROMPT = "a red star that moves right and turns cyan"

out = Console(highlight=False)
notes = Console(stderr=True, highlight=False)

Model = Annotated[
    str | None,
    typer.Option(envvar="MODEL", help="Directory or hub id of a checkpoint. Default: the demo model."),
]
DataDir = Annotated[Path, typer.Option(envvar="DATA_DIR", help="Where videos, keyframes, jobs and logs are kept.")]
Host = Annotated[str, typer.Option(envvar="HOST", help="Address to listen on.")]
Port = Annotated[int, typer.Option(envvar="PORT", min=1, max=65535, help="TCP port of the service.")]
RedisUrl = Annotated[str | None, typer.Option(envvar="REDIS_URL", help="A Redis or Valkey server.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show what the parts print.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    for command in (up, serve, worker, demo):
        app.command()(command)
    app.add_typer(key_commands.app, name="keys")


def up(
    *,
    model: Model = None,
    host: Host = LOCAL_HOST,
    port: Port = DEFAULT_PORT,
    data_dir: DataDir = Path("data"),
    redis_url: RedisUrl = None,
    verbose: Verbose = False,
) -> None:
    """Run everything on this machine: queue, gateway and worker. Ctrl-C stops it."""
    settings = UpSettings(data_dir.absolute(), port, host, model or None, redis_url or None)
    run(_up(settings, verbose))


async def _up(settings: UpSettings, verbose: bool) -> int:
    async with _running(settings, verbose) as supervisor:
        try:
            await supervisor.guarded(asyncio.Event().wait())
        except asyncio.CancelledError:
            if supervisor.signal is None:
                raise
    notes.print("sharecap has stopped")
    return 0


def serve(
    *,
    host: Host = LOCAL_HOST,
    port: Port = DEFAULT_PORT,
    data_dir: DataDir = Path("data"),
    redis_url: RedisUrl = None,
) -> None:
    """Run the gateway alone, against the server of REDIS_URL."""
    become("service", HOST=host, PORT=str(port), DATA_DIR=str(data_dir.absolute()), REDIS_URL=redis_url)


def worker(*, model: Model = None, data_dir: DataDir = Path("data"), redis_url: RedisUrl = None) -> None:
    """Run one worker alone, against the server of REDIS_URL."""
    become("workers.main", MODEL=model, DATA_DIR=str(data_dir.absolute()), REDIS_URL=redis_url)


def demo(*, model: Model = None, verbose: Verbose = False) -> None:
    """Start everything, caption a clip drawn for the purpose, recaption a prompt, stop."""
    with tempfile.TemporaryDirectory(prefix="sharecap-demo-") as directory:
        run(_demo(UpSettings(Path(directory), free_port(), model=model or None), verbose))


async def _demo(settings: UpSettings, verbose: bool) -> int:
    async with _running(settings, verbose) as supervisor:
        return await supervisor.guarded(_show(settings))


async def _show(settings: UpSettings) -> int:
    clip = settings.data_dir / "clip.mp4"
    await _draw(clip)
    out.print("\n[bold]Captioning[/] a clip of a drawn scene, keyframe by keyframe:")
    status = await caption_video(Client(settings.url), str(clip), {}, out)
    out.print(f"\n[bold]Writing out[/] the prompt “{DEMO_PROMPT}”:")
    return await recaption_prompt(Client(settings.url), DEMO_PROMPT, out) or status


async def _draw(clip: Path) -> None:
    command = (sys.executable, "-m", "workers.demo.scenes", "--out", str(clip))
    drawing = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    _, said = await drawing.communicate()
    if drawing.returncode != 0:
        raise CommandFailed(f"the sample clip could not be drawn:\n{said.decode(errors='replace').strip()}")


@asynccontextmanager
async def _running(settings: UpSettings, verbose: bool) -> AsyncIterator[Supervisor]:
    """Run everything, say so in one line, and in a terminal show that something happens until then."""
    began = monotonic()
    echo = _echo if verbose else None
    status = notes.status("starting: the model is being loaded")
    if not verbose:
        status.start()
    try:
        async with running(settings, echo, None if verbose else _tell) as supervisor:
            status.stop()
            name = settings.model or "the demo model"
            notes.print(f"sharecap is ready on {settings.url} with {name} after {monotonic() - began:.1f} s")
            yield supervisor
    finally:
        status.stop()


def _tell(line: str) -> None:
    notes.print(f"sharecap: {line}", soft_wrap=True)


def _echo(name: str, line: str) -> None:
    notes.print(Text.assemble((f"{name:>8} │ ", "dim"), Text.from_ansi(line)), soft_wrap=True)
