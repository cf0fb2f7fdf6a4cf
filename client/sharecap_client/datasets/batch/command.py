"""The command `sharecap batch`.

pyarrow and fsspec are imported only when the command runs, so that the other commands work without them.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from sharecap_client.api import DEFAULT_URL
from sharecap_client.cli.connection import ApiKey, Service, Url
from sharecap_client.cli.errors import CommandFailed
from sharecap_client.cli.option_flags import with_options
from sharecap_client.cli.run import require_extras, run
from sharecap_client.options import VideoOptions

CONCURRENCY = 64
InputsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="INPUT",
        help="Videos, directories, patterns, tables of paths (.jsonl, .csv, .tsv, .parquet), - for paths on "
        "standard input; local or by URL. Default: the inputs of the run in --out.",
        show_default=False,
    ),
]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Also caption videos again that failed before.")]
Redo = Annotated[bool, typer.Option("--redo", help="Caption again what was captioned with other options.")]
VideoColumn = Annotated[str, typer.Option(help="Column of a table with the path or URL of the video.")]
IdColumn = Annotated[str | None, typer.Option(help="Column of a table with a unique id; default: the path or URL.")]
Root = Annotated[Path | None, typer.Option(help="Directory that ids are relative to; default: the input's.")]
JsonEvents = Annotated[bool, typer.Option("--json", help="Print JSON events, one per line.")]
"""Flags that `sharecap ray` shares."""


@with_options(VideoOptions)
def batch(
    *,
    inputs: InputsArgument = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Directory of the run: new, or to be continued.")
    ] = None,
    status: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Print what this run contains, and do nothing else.")
    ] = None,
    retry_failed: RetryFailed = False,
    only_failed: Annotated[
        bool, typer.Option("--only-failed", help="Only caption videos again that failed before.")
    ] = False,
    redo: Redo = False,
    video_column: VideoColumn = "video",
    id_column: IdColumn = None,
    root: Root = None,
    concurrency: Annotated[
        int, typer.Option(min=1, help="At most this many videos at the same time; the service decides how many.")
    ] = CONCURRENCY,
    as_json: JsonEvents = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    options: dict[str, Any],
) -> None:
    """Caption many videos into a directory.

    Type the same command again to continue after any interruption: no video is captioned twice. Exit status 0: all
    videos are captioned, 3: some failed.

    sharecap batch clips/ --out run/
    """
    require_extras(("pyarrow", "fsspec"), "datasets")
    from sharecap_client.datasets.batch.session import Request, print_status, run_batch  # noqa: PLC0415

    if status is not None:
        print_status(status, as_json=as_json)
        return
    if out is None:
        raise CommandFailed("--out DIR names the directory of the run")
    request = Request(
        inputs=inputs or [],
        out=out,
        options=options,
        retry_failed=retry_failed,
        only_failed=only_failed,
        redo=redo,
        video_column=video_column,
        id_column=id_column,
        root=root,
        concurrency=concurrency,
        as_json=as_json,
    )
    run(run_batch(Service(url, api_key), request))


def register(app: typer.Typer) -> None:
    """Add this module's command to `app`."""
    app.command()(batch)
