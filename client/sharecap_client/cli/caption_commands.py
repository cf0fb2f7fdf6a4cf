"""`sharecap caption` and `sharecap recaption`: commands that use a running service."""

from typing import Annotated, Literal

import typer
from rich.console import Console

from sharecap_client.api import Client
from sharecap_client.cli.run import run
from sharecap_client.cli.terminal import caption_video, recaption_prompt

DEFAULT_URL = "http://127.0.0.1:8000"

out = Console(highlight=False)

Url = Annotated[str, typer.Option(envvar="SHARECAP_URL", help="Where the service answers.")]
ApiKey = Annotated[str | None, typer.Option(envvar="SHARECAP_API_KEY", help="Sent as a bearer token.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the finished job as JSON, and nothing else.")]


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
    url: Url = DEFAULT_URL,
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
    run(caption_video(Client(url, api_key), video, options, out, as_json))


def recaption(
    *,
    prompt: Annotated[str, typer.Argument(help="A short text-to-video prompt.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Write a short prompt out into a dense caption."""
    run(recaption_prompt(Client(url, api_key), prompt, out, as_json))


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(caption)
    app.command()(recaption)
