"""The `sharecap` command: run the service or a part of it, and use one that runs.

    up · demo                 everything on this machine, supervised
    serve · worker            one part, with its output in the terminal
    caption · recaption       a client of a running service
    keys add · list · revoke  who may use it
    generate · dedupe         one turn of the model, and filtering of captions, without any service
    vllm-args                 what `vllm serve` needs to serve the model without sharecap

The parts are other programs (`python -m service`, `python -m workers.main`, `python -m workers.generate`): this module
starts them and imports none of them, so that the command itself is quick.
"""

import asyncio
import os
import sys
import tempfile
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from service import cli_keys
from service.client import Client, RequestFailed
from service.supervisor import ChildFailed, Supervisor
from service.terminal import caption_video, printable, recaption_prompt
from service.up import LOCAL_HOST, CannotStart, UpSettings, free_port, running

DEFAULT_PORT = 8000
DEMO_PROMPT = "a red star that moves right and turns cyan"
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="sharecap",
    help="Dense, temporally exact video captions, streamed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cli_keys.app, name="keys")
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
Url = Annotated[str, typer.Option(envvar="SHARECAP_URL", help="Where the service answers.")]
ApiKey = Annotated[str | None, typer.Option(envvar="SHARECAP_API_KEY", help="Sent as a bearer token.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the finished job as JSON, and nothing else.")]


class CommandFailed(Exception):
    """Ends the command with one line on standard error."""


def main() -> None:
    """Entry point of the `sharecap` command: errors that are meant for the user become one line and status 1."""
    try:
        app()
    except (CommandFailed, CannotStart, ChildFailed, RequestFailed) as error:
        notes.print(Text.assemble(("error: ", "bold red"), printable(str(error))), soft_wrap=True)
        sys.exit(1)


@app.callback(invoke_without_command=True)
def root(show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if show_version:
        print(f"sharecap {version('sharecap')}")
        raise typer.Exit


# -- running the service


@app.command()
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
    _run(_up(settings, verbose))


async def _up(settings: UpSettings, verbose: bool) -> int:
    async with _running(settings, verbose) as supervisor:
        try:
            await supervisor.guarded(asyncio.Event().wait())
        except asyncio.CancelledError:
            if supervisor.signal is None:
                raise
    notes.print("sharecap has stopped")
    return 0


@app.command()
def serve(
    *,
    host: Host = LOCAL_HOST,
    port: Port = DEFAULT_PORT,
    data_dir: DataDir = Path("data"),
    redis_url: RedisUrl = None,
) -> None:
    """Run the gateway alone, against the server of REDIS_URL."""
    _become("service", HOST=host, PORT=str(port), DATA_DIR=str(data_dir.absolute()), REDIS_URL=redis_url)


@app.command()
def worker(*, model: Model = None, data_dir: DataDir = Path("data"), redis_url: RedisUrl = None) -> None:
    """Run one worker alone, against the server of REDIS_URL."""
    _become("workers.main", MODEL=model, DATA_DIR=str(data_dir.absolute()), REDIS_URL=redis_url)


PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(context_settings=PASS_ON)
def generate(context: typer.Context) -> None:
    """Run one greedy turn of the model, without any service; see `sharecap generate --help`."""
    _become("workers.generate", *context.args)


@app.command("vllm-args", context_settings=PASS_ON)
def vllm_args(context: typer.Context) -> None:
    """Print the options for vLLM's own server: vllm serve MODEL $(sharecap vllm-args MODEL)."""
    _become("workers.vllm_args", *context.args)


@app.command(context_settings=PASS_ON)
def dedupe(context: typer.Context) -> None:
    """Keep the captions that are not too similar to one kept before; see `sharecap dedupe --help`."""
    _become("workers.dedupe", *context.args)


# -- using it


@app.command()
def caption(
    *,
    video: Annotated[str, typer.Argument(help="A video file, or the http(s) address of one.")],
    mode: Annotated[Literal["sliding", "fast"] | None, typer.Option(help="How keyframes are described.")] = None,
    keyframes: Annotated[Literal["semantic", "interval"] | None, typer.Option(help="How they are chosen.")] = None,
    interval_s: Annotated[float | None, typer.Option("--interval", help="Sampling interval in seconds.")] = None,
    similarity_threshold: Annotated[float | None, typer.Option("--threshold", help="Below it: a keyframe.")] = None,
    max_keyframes: Annotated[int | None, typer.Option(help="The most keyframes to choose.")] = None,
    start_s: Annotated[float | None, typer.Option("--start", help="Begin here, in seconds.")] = None,
    end_s: Annotated[float | None, typer.Option("--end", help="End here, in seconds.")] = None,
    hd_num: Annotated[int | None, typer.Option(help="High-resolution crops per image.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Bound of each text, in tokens.")] = None,
    url: Url = f"http://{LOCAL_HOST}:{DEFAULT_PORT}",
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Caption a video with a running service, and show the captions as they are written."""
    given = {
        "mode": mode,
        "keyframes": keyframes,
        "interval_s": interval_s,
        "similarity_threshold": similarity_threshold,
        "max_keyframes": max_keyframes,
        "start_s": start_s,
        "end_s": end_s,
        "hd_num": hd_num,
        "max_tokens": max_tokens,
    }
    options = {name: value for name, value in given.items() if value is not None}
    _run(caption_video(Client(url, api_key), video, options, out, as_json))


@app.command()
def recaption(
    *,
    prompt: Annotated[str, typer.Argument(help="A short text-to-video prompt.")],
    url: Url = f"http://{LOCAL_HOST}:{DEFAULT_PORT}",
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Write a short prompt out into a dense caption."""
    _run(recaption_prompt(Client(url, api_key), prompt, out, as_json))


# -- the demonstration


@app.command()
def demo(*, model: Model = None, verbose: Verbose = False) -> None:
    """Start everything, caption a clip drawn for the purpose, recaption a prompt, stop."""
    with tempfile.TemporaryDirectory(prefix="sharecap-demo-") as directory:
        _run(_demo(UpSettings(Path(directory), free_port(), model=model or None), verbose))


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


# -- what the commands share


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


def _run(work: Coroutine[Any, Any, int]) -> NoReturn:
    """Run a command's coroutine and end with the exit status that it returns."""
    try:
        status = asyncio.run(work)
    except (KeyboardInterrupt, asyncio.CancelledError):
        status = EXIT_INTERRUPTED
    raise typer.Exit(status)


def _become(module: str, *arguments: str, **env: str | None) -> NoReturn:
    """Replace this process by `python -m module`, with `env` added to its environment."""
    given = {name: value for name, value in env.items() if value is not None}
    os.execve(sys.executable, [sys.executable, "-m", module, *arguments], {**os.environ, **given})


if __name__ == "__main__":
    main()
