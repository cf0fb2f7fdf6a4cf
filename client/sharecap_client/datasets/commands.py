"""`sharecap export`, `edit`, `stats` and `eval`: commands about the captions of a run, without a service.

pyarrow and the packages of the extras are imported only by the command that needs them, so that the other commands of
`sharecap` work without them.
"""

import asyncio
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from sharecap_client.cli.errors import CommandFailed
from sharecap_client.cli.run import require_extras
from sharecap_client.cli.terminal import printable

if TYPE_CHECKING:
    from sharecap_client.datasets.edit import Changed

PACKAGES = ("pyarrow", "fsspec")
EXTRA = "datasets"
SHOWN_CHANGES = 10

notes = Console(stderr=True, highlight=False, soft_wrap=True)

Run = Annotated[Path, typer.Argument(metavar="DIR", help="Directory of a run, written by `sharecap batch`.")]


def export(
    *,
    run: Run,
    trainer: Annotated[str, typer.Option("--for", metavar="TRAINER", help="Trainer that reads the files.")],
    to: Annotated[
        Path, typer.Option("--to", metavar="PATH", help="New folder; with --videos leave, that of the videos.")
    ],
    kind: Annotated[
        str | None,
        typer.Option("--as", metavar="KIND", help="Kind of files, such as jsonl, if the trainer reads several."),
    ] = None,
    videos: Annotated[
        Literal["link", "copy", "leave"],
        typer.Option(help="Link or copy the videos into PATH; leave: they are there already, add the captions."),
    ] = "link",
    replace: Annotated[bool, typer.Option("--replace", help="Replace an earlier export.")] = False,
) -> None:
    """Write the captions of a run as the files that a trainer reads.

    TRAINER is one of musubi, diffusion-pipe, ai-toolkit, simpletuner, onetrainer, finetrainers, cogvideo, diffsynth,
    videox-fun, easyanimate, fastvideo, open-sora, open-sora-plan, ltx, cosmos-predict, sharegpt4video, videofolder,
    webdataset, srt, vtt or markdown.

    sharecap export captions/ --for musubi --to training/
    """
    require_extras(PACKAGES, EXTRA)
    from sharecap_client.datasets.exports import export as exports  # noqa: PLC0415
    from sharecap_client.datasets.store import Store  # noqa: PLC0415

    form = exports.select(trainer, kind)
    with file_errors():
        report = exports.export(Store.open(run).rows(), form, to, videos, replace=replace)
    notes.print(f"{report.written} captions for {trainer} in {to}, {exports.describe(report)}", markup=False)


def edit(
    *,
    run: Run,
    trigger: Annotated[str | None, typer.Option(help="Word to put before captions that do not contain it.")] = None,
    prefix: Annotated[str | None, typer.Option(help="Text to put before each caption, with its spaces.")] = None,
    suffix: Annotated[str | None, typer.Option(help="Text to put after each caption, with its spaces.")] = None,
    find: Annotated[str | None, typer.Option(help="Text to replace, with --replace.")] = None,
    replacement: Annotated[str | None, typer.Option("--replace", help="Text that replaces --find.")] = None,
    regex: Annotated[bool, typer.Option("--regex", help="--find is a Python regular expression.")] = False,
    ignore_case: Annotated[bool, typer.Option("--ignore-case", help="--find matches in any case.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Take back the last edit first.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Write the edits; without it, they are only shown.")] = False,
) -> None:
    """Edit the captions of a run. Shows what would change; `--write` changes it.

    The model's own captions stay in the run, and the edits are recorded there: `--undo` takes the last one back.
    Several edits of one command apply in this order: find and replace, prefix, suffix, trigger word.

    sharecap edit captions/ --trigger ohwx --write
    """
    require_extras(PACKAGES, EXTRA)
    from sharecap_client.datasets import edit as edits  # noqa: PLC0415
    from sharecap_client.datasets.store import Store  # noqa: PLC0415

    if (find is None) != (replacement is None):
        raise CommandFailed("--find and --replace belong together")
    added = [edits.replace(find, replacement or "", regex, ignore_case)] if find is not None else []
    simple = ((edits.prefix, prefix), (edits.suffix, suffix), (edits.trigger, trigger))
    added += [make(text) for make, text in simple if text]
    with Store.open(run).locked() as store:
        recorded = store.manifest.edits[:-1] if undo else store.manifest.edits
        _show_changes(edits.preview(store.rows(), [*recorded, *added]), [edits.describe(one) for one in recorded])
        if write:
            edits.record(store, [*recorded, *added])
            notes.print(f"the edits are recorded in {run}; --undo takes the last one back", markup=False)
        else:
            notes.print("nothing was written: --write writes these texts")


def _show_changes(changes: Iterable["Changed"], recorded: Sequence[str]) -> None:
    """Print the first changes and their number."""
    count = 0
    for count, change in enumerate(changes, 1):
        if count <= SHOWN_CHANGES:
            print(f"{printable(change.row_id)}\n- {_line(change.before)}\n+ {_line(change.after)}")
    for number, one in enumerate(recorded, 1):
        notes.print(f"edit {number}, recorded before: {one}", markup=False)
    more = f", {SHOWN_CHANGES} of them are shown" if count > SHOWN_CHANGES else ""
    notes.print(f"{count} captions change{more}" if count != 1 else "1 caption changes")


def _line(text: str) -> str:
    return " ".join(printable(text).split())


def stats(
    *,
    run: Annotated[Path, typer.Argument(metavar="DIR|FILE", help="Directory of a run, or a JSON lines file.")],
    field: Annotated[str, typer.Option(help="Field with the caption, in a JSON lines file.")] = "caption",
    png: Annotated[Path | None, typer.Option("--png", metavar="FILE", help="Draw the figures to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show what captions consist of: their length, their words, clips that failed.

    sharecap stats captions/ --png captions.png
    """
    require_extras((*PACKAGES, "textblob", *(("matplotlib",) if png else ())), EXTRA, "stats")
    from sharecap_client.datasets.quality import charts, summary  # noqa: PLC0415
    from sharecap_client.datasets.store import Store  # noqa: PLC0415

    if not run.exists():
        raise CommandFailed(f"{run}: no such file or directory")
    rows = summary.rows_of_file(run, field) if run.is_file() else Store.open(run).rows()
    with file_errors():
        report = summary.summarize(rows).report()
        if png:
            charts.draw(report, png)
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        Console(highlight=False, soft_wrap=True).print(charts.table(report))


def evaluate(
    *,
    run: Run,
    reference: Annotated[Path, typer.Option("--reference", metavar="FILE", help="Reference captions, JSON lines.")],
    judge_url: Annotated[str | None, typer.Option("--judge-url", help="Server with OpenAI's API.")] = None,
    judge_model: Annotated[str | None, typer.Option("--judge-model", help="Model of that server.")] = None,
    judge_api_key: Annotated[
        str | None, typer.Option("--judge-api-key", envvar="SHARECAP_JUDGE_API_KEY", help="API key of that server.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Directory for the judge's answers, DIR/judge by default.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="How often the judge is asked each question.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Compare the model's captions of a run with references.

    Each line of FILE has the fields id and caption and, if known, differentials (time_s, text), duration_s and events.
    A judge, any server with OpenAI's API, also compares the events that the captions tell.

    sharecap eval captions/ --reference references.jsonl --judge-url http://localhost:8001 --judge-model MODEL
    """
    require_extras(PACKAGES, EXTRA)
    from sharecap_client.datasets.evaluation import evaluate as evaluation  # noqa: PLC0415
    from sharecap_client.datasets.evaluation.references import pair, read_references  # noqa: PLC0415
    from sharecap_client.datasets.store import Store  # noqa: PLC0415

    if (judge_url is None) != (judge_model is None):
        raise CommandFailed("--judge-url and --judge-model belong together")
    with file_errors():
        references = read_references(reference)
    pairs = pair(Store.open(run).rows(), references)
    if not pairs:
        raise CommandFailed("no caption of the run has a reference: do the ids of both agree?")
    report = {"compared": len(pairs), "missing": len(references) - len(pairs), "texts": evaluation.text_figures(pairs)}
    if judge_url and judge_model:
        directory = cache or run / "judge"
        judged = evaluation.judged_figures(
            pairs, judge_url, judge_model, directory, repeats=repeats, api_key=judge_api_key
        )
        with file_errors():
            report["events"] = asyncio.run(judged)
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        Console(highlight=False, soft_wrap=True).print(evaluation.table(report))


@contextmanager
def file_errors() -> Iterator[None]:
    """Raise CommandFailed for a file that cannot be read or written."""
    try:
        yield
    except OSError as error:
        raise CommandFailed(f"{error.filename or 'a file'}: {error.strerror or error}") from None


def register(app: typer.Typer) -> None:
    """Add this module's commands to `app`."""
    for command in (export, edit, stats):
        app.command()(command)
    app.command("eval")(evaluate)
