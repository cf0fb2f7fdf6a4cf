"""The command `sharecap ray`.

Ray and pyarrow are imported only when the command runs, so that the other commands work without them.
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from sharecap_client.cli.option_flags import with_options
from sharecap_client.cli.run import require
from sharecap_client.options import VideoOptions

ADVICE = "`make ray` or `pip install ./client '.[ray]'` in sharecap's repository"
PACKAGES = ("ray", "pyarrow", "fsspec")


@with_options(VideoOptions)
def ray(
    *,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT…",
            help="Videos, directories, patterns, tables of paths (.jsonl, .csv, .tsv, .parquet), - for paths on "
            "standard input; local or by URL. Default: the inputs of the run in --out.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[str, typer.Option("--out", "-o", help="Directory of the run, also s3://BUCKET/PATH.")],
    gpus: Annotated[int, typer.Option(min=0, help="Number of GPUs, each with one engine. 0: one engine on CPUs.")],
    model: Annotated[
        str | None, typer.Option(help="Directory or hub id of the model; default: MODEL, else the demo model.")
    ] = None,
    address: Annotated[
        str, typer.Option(envvar="RAY_ADDRESS", help="Address of a Ray cluster; local: starts Ray on this machine.")
    ] = "local",
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Also caption videos again that failed before.")
    ] = False,
    redo: Annotated[bool, typer.Option("--redo", help="Caption again what was captioned with other options.")] = False,
    video_column: Annotated[str, typer.Option(help="Column of a table with the path or URL of the video.")] = "video",
    id_column: Annotated[
        str | None, typer.Option(help="Column of a table with a unique id; default: the path or URL.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Directory that ids are relative to; default: the input's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON events, one per line.")] = False,
    options: dict[str, Any],
) -> None:
    """Caption many videos on a Ray cluster into a directory, without a service.

    The directory is the same as that of `sharecap batch`. Type the same command again to continue after any
    interruption. Exit status 0: all videos are captioned, 3: some failed.

    sharecap ray clips.parquet --out s3://bucket/run --gpus 8
    """
    require(PACKAGES, ADVICE)
    from workers.commands.ray_data.session import Request, run  # noqa: PLC0415

    request = Request(
        inputs=inputs or [],
        out=out,
        options=options,
        gpus=gpus,
        address=address,
        model=model,
        retry_failed=retry_failed,
        redo=redo,
        video_column=video_column,
        id_column=id_column,
        root=root,
        as_json=as_json,
    )
    raise typer.Exit(run(request))
