"""`sharecap caption` and `sharecap recaption`: commands that use a running service."""

from typing import Annotated, Literal

import typer
from rich.console import Console

from sharecap_client.api import AsyncClient
from sharecap_client.cli.run import run
from sharecap_client.cli.terminal import caption_video, recaption_prompt

DEFAULT_URL = "http://127.0.0.1:8000"

out = Console(highlight=False)

Url = Annotated[str, typer.Option(envvar="SHARECAP_URL", help="URL of the service.")]
ApiKey = Annotated[str | None, typer.Option(envvar="SHARECAP_API_KEY", help="API key, sent as a bearer token.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print only the finished job, as JSON.")]


def caption(
    *,
    video: Annotated[str, typer.Argument(help="A video file or its http(s) URL.")],
    mode: Annotated[Literal["sliding", "fast"] | None, typer.Option(help="How keyframes are captioned.")] = None,
    keyframes: Annotated[Literal["semantic", "interval"] | None, typer.Option(help="How keyframes are chosen.")] = None,
    interval_s: Annotated[float | None, typer.Option("--interval", help="Sampling interval in seconds.")] = None,
    similarity_threshold: Annotated[
        float | None,
        typer.Option("--threshold", help="Similarity below which a frame becomes a keyframe."),
    ] = None,
    max_keyframes: Annotated[int | None, typer.Option(help="Maximum number of keyframes.")] = None,
    start_s: Annotated[float | None, typer.Option("--start", help="Start of the part to caption, in seconds.")] = None,
    end_s: Annotated[float | None, typer.Option("--end", help="End of the part to caption, in seconds.")] = None,
    hd_num: Annotated[int | None, typer.Option(help="Maximum number of high-resolution crops per image.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Maximum length of each text, in tokens.")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Caption a video with a running service. Shows the captions while they are generated."""
    options = {
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
    chosen = {name: value for name, value in options.items() if value is not None}
    run(caption_video(AsyncClient(url, api_key), video, chosen, out, as_json))


def recaption(
    *,
    prompt: Annotated[str, typer.Argument(help="A short text-to-video prompt.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Expand a short text-to-video prompt into a dense caption."""
    run(recaption_prompt(AsyncClient(url, api_key), prompt, out, as_json))


def register(app: typer.Typer) -> None:
    """Add this module's commands to `app`."""
    app.command()(caption)
    app.command()(recaption)
