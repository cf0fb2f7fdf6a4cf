"""`sharecap up`, `serve`, `worker` and `demo`; registers all commands that run and administer the service.

Gateway and worker are separate programs (`python -m service`, `python -m workers.main`). This module starts them but
does not import them, so the command itself starts quickly.
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

import httpx
import typer
from rich.console import Console
from rich.text import Text
from sharecap_client.api import AsyncClient
from sharecap_client.cli.errors import CommandFailed
from sharecap_client.cli.run import become, require, run
from sharecap_client.cli.terminal import show_job

from service.contract.settings import WORKER_ADVICE
from service.local import deploy_commands, doctor_command, health_commands, key_commands
from service.local.cli_options import (
    DEFAULT_DATA_DIR,
    DEFAULT_HOST,
    DEFAULT_PORT,
    DataDir,
    EmbeddedOrRedisUrl,
    Model,
    Port,
    RedisUrl,
)
from service.local.start_checks import check_model, check_redis
from service.local.supervisor import Supervisor
from service.local.up import WORKER_PACKAGES, UpSettings, free_port, local_service

DEMO_PROMPT = "a red star that moves right and turns cyan"

out = Console(highlight=False)
notes = Console(stderr=True, highlight=False)

Host = Annotated[str, typer.Option(envvar="HOST", help="Address to listen on.")]
RedisMemory = Annotated[
    int | None,
    typer.Option(
        envvar="REDIS_MEMORY",
        min=1 << 20,
        help="Memory limit of the Valkey server in bytes. Default: a quarter of the machine's.",
    ),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the output of all processes.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands to the `sharecap` application."""
    for command in (up, serve, worker, demo, doctor_command.doctor):
        app.command()(command)
    app.add_typer(health_commands.app, name="health")
    app.add_typer(key_commands.app, name="keys")
    app.add_typer(deploy_commands.app, name="deploy")


def up(
    *,
    model: Model = None,
    host: Host = DEFAULT_HOST,
    port: Port = DEFAULT_PORT,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    redis_url: EmbeddedOrRedisUrl = None,
    redis_memory: RedisMemory = None,
    verbose: Verbose = False,
) -> None:
    """Run the whole service on this machine: a Valkey server, the gateway and a worker. Ctrl-C stops them.

    Jobs are kept in the data directory and continue after a restart. `sharecap doctor` says what this machine lacks.

    sharecap up

    sharecap up --model Lin-Chen/ShareCaptioner-Video
    """
    settings = UpSettings(data_dir.absolute(), port, host, model or None, redis_url or None, redis_memory)
    run(_up(settings, verbose))


async def _up(settings: UpSettings, verbose: bool) -> int:
    async with _started(settings, verbose) as supervisor:
        try:
            await supervisor.run(asyncio.Event().wait())
        except asyncio.CancelledError:
            if supervisor.signal is None:
                raise
    notes.print("sharecap has stopped")
    return 0


def serve(
    *,
    host: Host = DEFAULT_HOST,
    port: Port = DEFAULT_PORT,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    redis_url: RedisUrl = None,
) -> None:
    """Run only the gateway, with the Redis server at REDIS_URL.

    It accepts videos and streams captions; jobs wait until a worker runs. All other settings are environment
    variables.

    sharecap serve --redis-url redis://127.0.0.1:6379/0
    """
    asyncio.run(check_redis(redis_url))
    become("service", HOST=host, PORT=str(port), DATA_DIR=str(data_dir.absolute()), REDIS_URL=redis_url)


def worker(*, model: Model = None, data_dir: DataDir = DEFAULT_DATA_DIR, redis_url: RedisUrl = None) -> None:
    """Run only a worker, with the Redis server at REDIS_URL.

    The gateway must use the same Redis server and the same data directory.

    sharecap worker --redis-url redis://127.0.0.1:6379/0 --model Lin-Chen/ShareCaptioner-Video
    """
    require(WORKER_PACKAGES, WORKER_ADVICE)
    env = check_model(model)
    asyncio.run(check_redis(redis_url))
    become("workers.main", MODEL=model, DATA_DIR=str(data_dir.absolute()), REDIS_URL=redis_url, **env)


def demo(*, model: Model = None, verbose: Verbose = False) -> None:
    """Start everything, caption a clip that is drawn for it, recaption a prompt, and stop. Leaves nothing behind."""
    with tempfile.TemporaryDirectory(prefix="sharecap-demo-") as directory:
        run(_demo(UpSettings(Path(directory), free_port(), model=model or None), verbose))


async def _demo(settings: UpSettings, verbose: bool) -> int:
    async with _started(settings, verbose) as supervisor:
        return await supervisor.run(_caption_examples(settings))


async def _caption_examples(settings: UpSettings) -> int:
    clip = settings.data_dir / "clip.mp4"
    await _draw(clip)
    async with AsyncClient(settings.url) as client:
        out.print("\n[bold]Captioning[/] a generated clip, keyframe by keyframe:")
        captioned = await show_job(client, (await client.caption(clip)).id, out)
        out.print(f"\n[bold]Recaptioning[/] the prompt “{DEMO_PROMPT}”:")
        recaptioned = await show_job(client, (await client.recaption(DEMO_PROMPT)).id, out)
    return 0 if captioned and recaptioned else 1


async def _draw(clip: Path) -> None:
    command = (sys.executable, "-P", "-m", "workers.demo.scenes", "--out", str(clip))
    drawing = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    _, errors = await drawing.communicate()
    if drawing.returncode != 0:
        raise CommandFailed(f"cannot draw the sample clip:\n{errors.decode(errors='replace').strip()}")


@asynccontextmanager
async def _started(settings: UpSettings, verbose: bool) -> AsyncIterator[Supervisor]:
    """Run the service; show a spinner until it is ready, then one line with its URL."""
    started_at = monotonic()
    echo = _echo if verbose else None
    status = notes.status("starting: loading the model")
    if not verbose:
        status.start()
    try:
        async with local_service(settings, echo, None if verbose else _report) as supervisor:
            status.stop()
            name = settings.model or "the demo model"
            notes.print(f"sharecap is ready on {settings.url} with {name} after {monotonic() - started_at:.1f} s")
            if note := await _demonstration(settings.url):
                notes.print(note)
            yield supervisor
    finally:
        status.stop()


async def _demonstration(url: str) -> str | None:
    """Return what the service says about its model if the model is only a demonstration."""
    try:
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=5) as client:
            note: str | None = (await client.get("/readyz")).json().get("demonstration")
            return note
    except (httpx.HTTPError, ValueError):
        return None


def _report(line: str) -> None:
    notes.print(f"sharecap: {line}", soft_wrap=True)


def _echo(name: str, line: str) -> None:
    notes.print(Text.assemble((f"{name:>8} │ ", "dim"), Text.from_ansi(line)), soft_wrap=True)
