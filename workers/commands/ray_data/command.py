"""The command `sharecap ray`.

Ray and pyarrow are imported only when the command runs, so that the other commands work without them.
"""

from typing import Annotated, Any

import typer
from sharecap_client.cli.option_flags import with_options
from sharecap_client.cli.run import require
from sharecap_client.datasets.batch.command import (
    IdColumn,
    InputsArgument,
    JsonEvents,
    Redo,
    RetryFailed,
    Root,
    VideoColumn,
)
from sharecap_client.options import VideoOptions

ADVICE = "`make ray` or `pip install ./client '.[ray]'` in sharecap's repository"
PACKAGES = ("ray", "pyarrow", "fsspec")


@with_options(VideoOptions)
def ray(
    *,
    inputs: InputsArgument = None,
    out: Annotated[str, typer.Option("--out", "-o", help="Directory of the run, also s3://BUCKET/PATH.")],
    gpus: Annotated[int, typer.Option(min=0, help="Number of GPUs, each with one engine. 0: one engine on CPUs.")],
    model: Annotated[
        str | None, typer.Option(help="Directory or hub id of the model; default: MODEL, else the demo model.")
    ] = None,
    address: Annotated[
        str, typer.Option(envvar="RAY_ADDRESS", help="Address of a Ray cluster; local: starts Ray on this machine.")
    ] = "local",
    retry_failed: RetryFailed = False,
    redo: Redo = False,
    video_column: VideoColumn = "video",
    id_column: IdColumn = None,
    root: Root = None,
    as_json: JsonEvents = False,
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
