"""`sharecap export`, `edit`, `stats` and `eval`: commands about the captions of a run, without a service.

pyarrow and the packages of the extras are imported only by the command that needs them, so that the other commands of
`sharecap` work without them.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from sharecap_client.cli.run import require

PACKAGES = ("pyarrow", "fsspec")
ADVICE = "Install them with `pip install 'sharecap-client[datasets]'`."

notes = Console(stderr=True, highlight=False, soft_wrap=True)

Run = Annotated[Path, typer.Argument(metavar="DIR", help="Directory of a run, written by `sharecap batch`.")]


def export(
    *,
    run: Run,
    trainer: Annotated[str, typer.Option("--for", metavar="TRAINER", help="Trainer that reads the files.")],
    to: Annotated[Path, typer.Option("--to", metavar="PATH", help="Folder to write. It must not exist yet.")],
    kind: Annotated[
        str | None, typer.Option("--as", metavar="KIND", help="Kind of files, if the trainer reads several.")
    ] = None,
    videos: Annotated[
        Literal["link", "copy", "leave"],
        typer.Option(help="Link or copy the videos into the folder; `leave`: they are in PATH, add the captions."),
    ] = "link",
    replace: Annotated[bool, typer.Option("--replace", help="Replace an earlier export.")] = False,
) -> None:
    """Write the captions of a run as the files that a trainer reads.

    TRAINER is one of musubi, diffusion-pipe, ai-toolkit, simpletuner, onetrainer, finetrainers, cogvideo, diffsynth,
    videox-fun, easyanimate, fastvideo, open-sora, open-sora-plan, ltx, cosmos-predict, sharegpt4video, videofolder,
    webdataset, srt, vtt or markdown.

    sharecap export captions/ --for musubi --to training/
    """
    require(PACKAGES, ADVICE)
    from sharecap_client.datasets.exports import export as exports  # noqa: PLC0415
    from sharecap_client.datasets.store import Store  # noqa: PLC0415

    form = exports.select(trainer, kind)
    report = exports.export(Store.open(run).rows(), form, to, videos, replace=replace)
    notes.print(f"{report.written} captions for {trainer} in {to}, {exports.describe(report)}", markup=False)


def register(app: typer.Typer) -> None:
    """Add this module's commands to `app`."""
    for command in (export,):
        app.command()(command)
