"""`sharecap dedupe captions.jsonl --threshold T`: semantic filtering of captions.

A caption is kept if its cosine with every previously kept caption is below the threshold. Its feature is the CLS token
of a BERT-size encoder. This is how the ShareGPT4Video paper selects different videos, using captions of one sentence.
The file is streamed twice: first to check every line, then to filter it block by block.
"""

import argparse
import json
import math
import sys
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, TextIO

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sharecap_client.cli.run import EXIT_INTERRUPTED
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from service.contract.model_hub import OFFLINE, check_hub, is_hub_id

ENCODER = "google-bert/bert-base-uncased"
MAX_TOKENS = 512
BATCH = 64
BLOCK = 1024
"""Number of captions filtered together."""
CHUNK = 16384
"""Number of kept captions that a block is compared with at once. The cosines take BLOCK * CHUNK * 4 bytes."""
DIGITS = 5
"""Cosines are rounded before comparison: in float32, the cosine of two equal captions may be 0.9999999."""

Flags = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]
Cosines = npt.NDArray[np.float64]


# -- filtering


class Pool:
    """The features of all kept captions, in float32. Allocates whole chunks of `chunk` features."""

    def __init__(self, threshold: float, device: str = "cpu", chunk: int = CHUNK) -> None:
        self.size = 0
        self._threshold, self._device, self._chunk = threshold, device, chunk
        self._chunks: list[torch.Tensor] = []  # [chunk, width] each; the last one is partly filled

    def admit(self, features: torch.Tensor) -> tuple[Flags, Indices, Cosines]:
        """Filter a block of features [n, width] in order, and add the kept ones to the pool.

        Returns for each row: whether it is kept; the index in the pool of the most similar feature kept before it, or
        -1; and their cosine, or -inf. Raises ValueError for a feature that is zero or not finite.
        """
        features = torch.nn.functional.normalize(features.to(self._device, torch.float32), dim=-1)
        cosines, indices = self._nearest(features)
        block_cosines = _rounded(features @ features.T)  # [n, n]
        if not np.allclose(np.diag(block_cosines), 1):
            raise ValueError("the encoder returned a feature that is zero or not finite")
        kept = np.zeros(len(features), np.bool_)
        next_index = self.size
        for row in range(len(features)):
            if cosines[row] < self._threshold:
                kept[row] = True
                later = slice(row + 1, None)
                closer = block_cosines[row, later] > cosines[later]
                cosines[later][closer] = block_cosines[row, later][closer]
                indices[later][closer] = next_index
                next_index += 1
        self.add(features[torch.from_numpy(kept).to(self._device)])
        return kept, indices, cosines

    def _nearest(self, features: torch.Tensor) -> tuple[Cosines, Indices]:
        """Return each row's largest cosine with the pool, and the index of that feature."""
        cosines = np.full(len(features), -math.inf)
        indices = np.full(len(features), -1, np.int64)
        for number, chunk in enumerate(self._chunks):
            start = number * self._chunk
            products = features @ chunk[: self.size - start].T  # [n, chunk]
            largest = products.argmax(1, keepdim=True)  # [n, 1]
            values = _rounded(products.gather(1, largest).squeeze(1))
            closer = values > cosines
            cosines[closer] = values[closer]
            indices[closer] = start + largest.squeeze(1).cpu().numpy()[closer]
        return cosines, indices

    def add(self, features: torch.Tensor) -> None:
        """Add features of length 1, [n, width], to the pool without filtering."""
        while len(features):
            start = self.size % self._chunk
            if start == 0:
                self._chunks.append(features.new_empty(self._chunk, features.shape[1]))
            part = features[: self._chunk - start]
            self._chunks[-1][start : start + len(part)] = part
            self.size += len(part)
            features = features[len(part) :]


def _rounded(values: torch.Tensor) -> Cosines:
    return values.double().round(decimals=DIGITS).cpu().numpy()


class CaptionEncoder:
    """Computes the CLS token of an encoder's last layer for each text, in float32."""

    def __init__(self, name: str, device: str) -> None:
        """Load `name`, a directory or hub id.

        Raises OSError or ModelUnavailable if it is missing, ValueError if it has no CLS token.
        """
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        # without this check, the hub's library would try for half a minute before it reports a missing network
        source: dict[str, Any] = {
            "trust_remote_code": False,
            "local_files_only": is_hub_id(name) and check_hub(name) == OFFLINE,
        }
        model: Any = AutoModel.from_pretrained(name, dtype=torch.float32, **source)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(name, padding_side="right", **source)
        if self._tokenizer.cls_token_id is None or self._tokenizer("").input_ids[:1] != [self._tokenizer.cls_token_id]:
            raise ValueError(f"{name} is not an encoder like BERT: its texts do not begin with a CLS token")
        self._model = model.eval().to(device)
        room = getattr(model.config, "max_position_embeddings", MAX_TOKENS)
        self._max_tokens = min(self._tokenizer.model_max_length, room, MAX_TOKENS)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """Return float32 [texts, width]. Texts are truncated to the encoder's maximum length."""
        ids = self._tokenizer(list(texts), truncation=True, max_length=self._max_tokens).input_ids
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))  # similar lengths need little padding
        features = [torch.empty(0)] * len(ids)
        for start in range(0, len(order), BATCH):
            indices = order[start : start + BATCH]
            batch = self._tokenizer.pad({"input_ids": [ids[index] for index in indices]}, return_tensors="pt")
            states = self._model(**batch.to(self._model.device)).last_hidden_state  # [batch, tokens, width]
            for index, feature in zip(indices, states[:, 0], strict=True):
                features[index] = feature
        return torch.stack(features)


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
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pool, encoder = Pool(options.threshold, device), CaptionEncoder(options.encoder, device)

    def admit(captions: list[str]) -> tuple[list[bool], list[int], list[float]]:
        kept, indices, cosines = pool.admit(encoder.encode(captions))
        return kept.tolist(), indices.tolist(), cosines.tolist()

    options.kept = options.captions
    options.dropped = f"excluded from exports, {options.captions}"
    with _progress() as progress:
        task = progress.add_task("filtering", total=None)
        return filter_store(options.captions, admit, BLOCK, lambda count: progress.update(task, advance=count))


def _filter(options: argparse.Namespace, report: Report, progress: Progress) -> tuple[int, int]:
    """Check all lines, then filter them block by block and write the report. Returns the two counts of `run`."""
    checking = progress.add_task("checking", total=None)
    total = sum(1 for _ in read(options.captions, options.field))
    progress.remove_task(checking)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder, pool = CaptionEncoder(options.encoder, device), Pool(options.threshold, device)
    task = progress.add_task("filtering", total=total)
    rows = read(options.captions, options.field)
    while block := list(islice(rows, BLOCK)):
        kept, indices, cosines = pool.admit(encoder.encode([row.caption for row in block]))
        for row, *result in zip(block, kept.tolist(), indices.tolist(), cosines.tolist(), strict=True):
            report.write(row, *result)
        progress.update(task, advance=len(block))
    return total, pool.size


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
