"""`sharecap dedupe captions.jsonl --threshold T`: semantic filtering of captions.

A caption is kept if its cosine with every previously kept caption is below the threshold. Its feature is the CLS token
of a BERT-size encoder. This is how the ShareGPT4Video paper selects different videos, using captions of one sentence.
The file is streamed twice: first to check every line, then to filter it block by block.
"""

import argparse
import json
import sys
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sharecap_client.cli.run import EXIT_INTERRUPTED

if TYPE_CHECKING:
    from workers.commands.similarity import CaptionFilter

ENCODER = "google-bert/bert-base-uncased"
BLOCK = 1024
"""Number of captions filtered together."""


# -- reading and writing


@dataclass(frozen=True)
class Row:
    """One line of the file: its number from 1, its JSON object, and the caption in the object."""

    line: int
    value: dict[str, Any]
    caption: str


def read(path: Path, field: str) -> Iterator[Row]:
    """Yield the rows of a JSON lines file, skipping empty lines. Raises ValueError that names the line."""
    with path.open("rb") as file:
        for line, text in enumerate(file, 1):
            if text.strip():
                try:
                    yield _row(line, text, field)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{path} line {line}: {error}") from None


def _row(line: int, text: bytes, field: str) -> Row:
    try:
        value = json.loads(text.decode("utf-8-sig"), parse_constant=_refuse)
    except UnicodeDecodeError:
        raise ValueError("this is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"this is not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(value, dict):
        raise ValueError("this is not a JSON object")
    if field not in value:
        raise ValueError(f"the field {field!r} is missing; the fields are: {', '.join(map(repr, value)) or 'none'}")
    caption = value[field]
    if not isinstance(caption, str):
        raise ValueError(f"the field {field!r} is not a string")
    return Row(line, value, caption.encode("utf-8", "replace").decode())  # replaces lone surrogates


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"this is not JSON: {constant} is not a JSON number")


@contextmanager
def _atomic_file(path: Path) -> Iterator[TextIO]:
    """Yield a file that is renamed to `path` at the end, or deleted after an error."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("w", encoding="utf-8", errors="backslashreplace") as file:  # writes JSON's escape
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


class Report:
    """Writes each row to the kept or the dropped file, with `nearest`: the most similar row kept before it."""

    def __init__(self, kept: TextIO, dropped: TextIO, id_field: str) -> None:
        self._kept, self._dropped, self._id_field = kept, dropped, id_field
        self._lines, self._ids = array("q"), list[Any]()  # of the kept rows

    def write(self, row: Row, kept: bool, nearest_index: int, cosine: float) -> None:
        nearest = None
        if nearest_index >= 0:
            line, row_id = self._lines[nearest_index], self._ids[nearest_index]
            nearest = {"line": line, "id": row_id, "similarity": cosine}
        text = json.dumps(row.value | {"nearest": nearest}, ensure_ascii=False)
        print(text, file=self._kept if kept else self._dropped)
        if kept:
            self._lines.append(row.line)
            self._ids.append(row.value.get(self._id_field))


# -- the command


def main(arguments: Sequence[str] | None = None) -> int:
    """Filter one file. Returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        total, kept = run(options)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:  # libraries raise many types; the user needs the reason, not a stack trace
        print(f"sharecap dedupe: {_first_line(error)}", file=sys.stderr)
        return 1
    print(f"kept {kept} of {total} captions: {options.kept}")
    print(f"dropped {total - kept}: {options.dropped}")
    return 0


def run(options: argparse.Namespace) -> tuple[int, int]:
    """Filter the file. Returns the number of captions and the number of kept captions. Raises OSError or ValueError."""
    path: Path = options.captions
    if path.is_dir():
        return _run_on_store(options)
    options.kept = options.kept or path.with_name(f"{path.stem}.kept.jsonl")
    options.dropped = options.dropped or path.with_name(f"{path.stem}.dropped.jsonl")
    if len({file.resolve() for file in (path, options.kept, options.dropped)}) < 3:
        raise ValueError("the captions, the kept and the dropped must be three different files")
    with _atomic_file(options.kept) as kept, _atomic_file(options.dropped) as dropped, _progress() as progress:
        return _filter(options, Report(kept, dropped, options.id), progress)


def _run_on_store(options: argparse.Namespace) -> tuple[int, int]:
    from sharecap_client.datasets.store import Store  # noqa: PLC0415  (needs pyarrow; files do not)

    from workers.commands.dedupe_store import filter_store  # noqa: PLC0415

    if options.kept or options.dropped:
        raise ValueError("--kept and --dropped are for files: a run keeps its rows and marks those that are dropped")
    Store.open(options.captions)  # fails before the encoder is loaded if this is not a run
    captions = _caption_filter(options)
    options.kept = options.captions
    options.dropped = f"excluded from exports, {options.captions}"
    with _progress() as progress:
        task = progress.add_task("filtering", total=None)
        return filter_store(options.captions, captions.admit, BLOCK, lambda count: progress.update(task, advance=count))


def _filter(options: argparse.Namespace, report: Report, progress: Progress) -> tuple[int, int]:
    """Check all lines, then filter them block by block and write the report. Returns the two counts of `run`."""
    checking = progress.add_task("checking", total=None)
    total = sum(1 for _ in read(options.captions, options.field))
    progress.remove_task(checking)
    captions = _caption_filter(options)
    task = progress.add_task("filtering", total=total)
    rows = read(options.captions, options.field)
    while block := list(islice(rows, BLOCK)):
        results = captions.admit([row.caption for row in block])
        for row, kept, nearest_index, cosine in zip(block, *results, strict=True):
            report.write(row, kept, nearest_index, cosine)
        progress.update(task, advance=len(block))
    return total, captions.kept


def _caption_filter(options: argparse.Namespace) -> "CaptionFilter":
    from workers.commands.similarity import CaptionFilter  # noqa: PLC0415  (imports torch, which takes seconds)

    return CaptionFilter(options.encoder, options.threshold)


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sharecap dedupe",
        description="Drop captions that are too similar to an earlier caption.",
        epilog="example: sharecap dedupe captions.jsonl --threshold 0.97",
    )
    parser.add_argument("captions", type=Path, help="JSON lines file, one object per line, or a run")
    parser.add_argument(
        "--threshold", type=_cosine, required=True, help="cosine (-1 to 1) at or above which a caption is dropped"
    )
    parser.add_argument("--field", default="caption", help="field with the caption (default: caption)")
    parser.add_argument("--id", default="id", help="field that identifies a row, if present (default: id)")
    parser.add_argument("--encoder", default=ENCODER, help=f"directory or hub id (default: {ENCODER})")
    parser.add_argument("--kept", type=Path, help="output file (default: next to the captions)")
    parser.add_argument("--dropped", type=Path, help="output file (default: next to the captions)")
    return parser


def _cosine(text: str) -> float:
    value = float(text)
    if not -1 <= value <= 1:
        raise argparse.ArgumentTypeError("must be a cosine, from -1 to 1")
    return value


def _first_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
