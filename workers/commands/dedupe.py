"""Semantic filtering, from the command line: `python -m workers.commands.dedupe captions.jsonl --threshold T`.

What `sharecap dedupe` runs. A caption is kept where its cosine with each caption kept before it is below the threshold.
Its feature is the CLS token of a BERT-size encoder: the ShareGPT4Video paper's way of choosing videos that differ, by
captions of one sentence. The file is read as a stream, twice: to check every line, then block by block.
"""

import argparse
import json
import math
import sys
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, TextIO

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

ENCODER = "google-bert/bert-base-uncased"
MAX_TOKENS = 512
BATCH = 64
BLOCK = 1024
"""How many captions are judged together."""
CHUNK = 16384
"""How many kept captions a block is compared with at once: their cosines take BLOCK * CHUNK * 4 bytes."""
DIGITS = 5
"""Cosines are rounded before they are compared: in float32 that of two equal captions may be 0.9999999."""
EXIT_INTERRUPTED = 130

Flags = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]
Cosines = npt.NDArray[np.float64]


# -- choosing


class Pool:
    """The features of all kept captions, in float32: 4 bytes * width each, and room for at most one chunk more."""

    def __init__(self, threshold: float, device: str = "cpu", chunk: int = CHUNK) -> None:
        self.size = 0
        self._threshold, self._device, self._chunk = threshold, device, chunk
        self._chunks: list[torch.Tensor] = []  # [chunk, width] each, the last one filled in part

    def admit(self, features: torch.Tensor) -> tuple[Flags, Places, Cosines]:
        """Judge a block of features, [n, width], in order; those that are kept join the pool.

        Returns of each row whether it is kept, and the nearest of those kept before it: its place among the kept and
        the cosine; -1 and -inf where there is none. Raises ValueError for a feature that has no direction.
        """
        features = torch.nn.functional.normalize(features.to(self._device, torch.float32), dim=-1)
        cosines, places = self._nearest(features)
        among = _rounded(features @ features.T)  # [n, n]
        if not np.allclose(np.diag(among), 1):
            raise ValueError("the encoder gives a feature that is zero or not finite")
        kept = np.zeros(len(features), np.bool_)
        joined = self.size
        for row in range(len(features)):
            if cosines[row] < self._threshold:
                kept[row] = True
                after = slice(row + 1, None)
                closer = among[row, after] > cosines[after]
                cosines[after][closer] = among[row, after][closer]
                places[after][closer] = joined
                joined += 1
        self.join(features[torch.from_numpy(kept).to(self._device)])
        return kept, places, cosines

    def _nearest(self, features: torch.Tensor) -> tuple[Cosines, Places]:
        """Return each row's greatest cosine with the pool, and where in the pool."""
        cosines = np.full(len(features), -math.inf)
        places = np.full(len(features), -1, np.int64)
        for number, chunk in enumerate(self._chunks):
            start = number * self._chunk
            products = features @ chunk[: self.size - start].T  # [n, chunk]
            found = products.argmax(1, keepdim=True)
            values = _rounded(products.gather(1, found)[:, 0])
            closer = values > cosines
            cosines[closer] = values[closer]
            places[closer] = start + found[:, 0].cpu().numpy()[closer]
        return cosines, places

    def join(self, features: torch.Tensor) -> None:
        """Take in features of length 1, [n, width], unjudged."""
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
    """Text -> the CLS token of an encoder's last layer, float32."""

    def __init__(self, name: str, device: str) -> None:
        """Load `name`, a directory or a hub id. Raises OSError where there is none, ValueError where it has no CLS."""
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        model: Any = AutoModel.from_pretrained(name, dtype=torch.float32, trust_remote_code=False)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(name, padding_side="right", trust_remote_code=False)
        if self._tokenizer.cls_token_id is None or self._tokenizer("").input_ids[:1] != [self._tokenizer.cls_token_id]:
            raise ValueError(f"{name} is no encoder of BERT's kind: its texts do not begin with a CLS token")
        self._model = model.eval().to(device)
        room = getattr(model.config, "max_position_embeddings", MAX_TOKENS)
        self._max_tokens = min(self._tokenizer.model_max_length, room, MAX_TOKENS)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """Return [texts, width]; what is beyond the encoder's length is cut off."""
        ids = self._tokenizer(list(texts), truncation=True, max_length=self._max_tokens).input_ids
        order = sorted(range(len(ids)), key=lambda place: len(ids[place]))  # texts of like length pad little
        features = [torch.empty(0)] * len(ids)
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            batch = self._tokenizer.pad({"input_ids": [ids[place] for place in places]}, return_tensors="pt")
            states = self._model(**batch.to(self._model.device)).last_hidden_state  # [batch, tokens, width]
            for place, feature in zip(places, states[:, 0], strict=True):
                features[place] = feature
        return torch.stack(features)


# -- reading and writing


@dataclass(frozen=True)
class Row:
    """One line of the file, counted from 1: its object, and the caption in it."""

    line: int
    value: dict[str, Any]
    caption: str


def read(path: Path, field: str) -> Iterator[Row]:
    """Yield the rows of a JSON lines file; empty lines are passed over. Raises ValueError, which names the line."""
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
        raise ValueError(f"there is no field {field!r}, only {', '.join(map(repr, value)) or 'an empty object'}")
    caption = value[field]
    if not isinstance(caption, str):
        raise ValueError(f"the field {field!r} is no text")
    return Row(line, value, caption.encode("utf-8", "replace").decode())  # half a surrogate pair is no text


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"this is not JSON: {constant} is no number there")


@contextmanager
def _written(path: Path) -> Iterator[TextIO]:
    """Open a file that takes the name `path` at the end, and is gone after an error."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("w", encoding="utf-8", errors="backslashreplace") as file:  # that is JSON's own escape
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


class Report:
    """Writes each row to the file of the kept or the dropped, with `nearest`: the most similar row kept before it."""

    def __init__(self, kept: TextIO, dropped: TextIO, id_field: str) -> None:
        self._kept, self._dropped, self._id_field = kept, dropped, id_field
        self._lines, self._ids = array("q"), list[Any]()  # of the kept rows

    def write(self, row: Row, kept: bool, place: int, cosine: float) -> None:
        nearest = None if place < 0 else {"line": self._lines[place], "id": self._ids[place], "similarity": cosine}
        text = json.dumps(row.value | {"nearest": nearest}, ensure_ascii=False)
        print(text, file=self._kept if kept else self._dropped)
        if kept:
            self._lines.append(row.line)
            self._ids.append(row.value.get(self._id_field))


# -- the command


def main(arguments: Sequence[str] | None = None) -> int:
    """Filter one file; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        total, kept = run(options)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:  # whatever the libraries raise: a user wants its reason, not its stack
        print(f"sharecap dedupe: {_first_line(error)}", file=sys.stderr)
        return 1
    print(f"kept {kept} of {total} captions: {options.kept}")
    print(f"dropped {total - kept}: {options.dropped}")
    return 0


def run(options: argparse.Namespace) -> tuple[int, int]:
    """Filter; return how many captions there are and how many are kept. Raises OSError or ValueError mostly."""
    path: Path = options.captions
    options.kept = options.kept or path.with_name(f"{path.stem}.kept.jsonl")
    options.dropped = options.dropped or path.with_name(f"{path.stem}.dropped.jsonl")
    if len({place.resolve() for place in (path, options.kept, options.dropped)}) < 3:
        raise ValueError("the captions, the kept and the dropped must be three different files")
    with ExitStack() as stack:
        report = Report(
            stack.enter_context(_written(options.kept)), stack.enter_context(_written(options.dropped)), options.id
        )
        progress = stack.enter_context(_progress())
        checking = progress.add_task("checking", total=None)
        total = sum(1 for _ in read(path, options.field))
        progress.remove_task(checking)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        encoder, pool = CaptionEncoder(options.encoder, device), Pool(options.threshold, device)
        task = progress.add_task("filtering", total=total)
        rows = read(path, options.field)
        while block := list(islice(rows, BLOCK)):
            verdicts = pool.admit(encoder.encode([row.caption for row in block]))
            for row, *verdict in zip(block, *(part.tolist() for part in verdicts), strict=True):
                report.write(row, *verdict)
            progress.update(task, advance=len(block))
    return total, pool.size


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sharecap dedupe", description="Keep the captions that are not too similar to one kept before."
    )
    parser.add_argument("captions", type=Path, help="JSON lines: one object a line")
    parser.add_argument(
        "--threshold", type=_cosine, required=True, help="cosine from which on a caption is dropped, -1 to 1"
    )
    parser.add_argument("--field", default="caption", help="where the text is (default: caption)")
    parser.add_argument("--id", default="id", help="what names a row, where it is there (default: id)")
    parser.add_argument("--encoder", default=ENCODER, help=f"directory or hub id (default: {ENCODER})")
    parser.add_argument("--kept", type=Path, help="where to write (default: beside the captions)")
    parser.add_argument("--dropped", type=Path, help="where to write (default: beside the captions)")
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
