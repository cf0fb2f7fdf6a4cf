"""Where `sharecap` writes finished jobs, and in which format: `--format` and `--out`."""

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from sharecap_client.cli.errors import CommandFailed
from sharecap_client.formats import FORMATS, Format, name_of, render
from sharecap_client.models import Job

FormatOption = Annotated[
    Format | None,
    typer.Option(
        "--format",
        "-f",
        help="Print the result in this format. Without it, commands that wait show the result as it is generated.",
    ),
]
OutOption = Annotated[
    str | None,
    typer.Option(
        "--out",
        "-o",
        metavar="<path>",
        help="File for the result; its suffix selects the format. An existing directory, or a name that ends with /, "
        "gets one file per video. Existing files are replaced.",
    ),
]
DetachOption = Annotated[
    bool, typer.Option("--detach", "-d", help="Print only the id of the job, and do not wait for its result.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="The same as --format json.")]


class Output:
    """Writes jobs.

    `shown`: the captions may be shown on standard output while they are generated. `detached`: nothing is written.
    """

    def __init__(
        self,
        output: Format | None,
        out: str | None,
        as_json: bool = False,
        *,
        several: bool = False,
        detached: bool = False,
    ) -> None:
        self.detached = detached
        path = Path(out) if out else None
        self.directory = path if out and path and (several or path.is_dir() or out.endswith(os.sep)) else None
        self.file = None if self.directory else path
        self.shown = not (output or as_json) or out is not None
        self.format: Format = output or ("json" if as_json else _format_of(self.file))
        self._several = several
        self._written: set[Path] = set()
        if several and out is None and self.format in ("srt", "vtt", "csv"):
            raise CommandFailed(f"several results in one {self.format} file are not possible: use --out DIRECTORY")
        self._check_writable()

    def _check_writable(self) -> None:
        """Raise CommandFailed if the result could not be written, before anything is captioned."""
        folder = self.directory or (self.file.absolute().parent if self.file else None)
        if folder is None:
            return
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        try:
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            raise CommandFailed(f"cannot write {self.file or folder}: {error.strerror}") from None

    def write(self, job: Job) -> Path | None:
        """Write the job; return its file, None for standard output. Raises CommandFailed."""
        try:
            text = self._text(job)
        except ValueError as error:
            raise CommandFailed(str(error)) from None
        path = self.file or (self._path(job) if self.directory else None)
        if path is None:
            print(text, end="")
            return None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.part")
            part.write_text(text, encoding="utf-8")
            part.replace(path)
        except OSError as error:
            raise CommandFailed(f"cannot write {path}: {error.strerror}; `sharecap show {job.id}` prints it") from None
        return path

    def _text(self, job: Job) -> str:
        if self._several and self.directory is None:
            if self.format == "json":
                return job.model_dump_json() + "\n"
            heading = "" if self.format == "md" else f"== {name_of(job)} ==\n"
            return f"{heading}{render(job, self.format)}\n"
        return render(job, self.format)

    def _path(self, job: Job) -> Path:
        """Return a name that this command has not used yet, after the video's: two folders can have a `clip.mp4`."""
        assert self.directory is not None
        stem = Path((job.source and job.source.filename) or job.id).stem
        path, number = self.directory / f"{stem}.{self.format}", 1
        while path in self._written:
            number += 1
            path = self.directory / f"{stem}-{number}.{self.format}"
        self._written.add(path)
        return path


def _format_of(file: Path | None) -> Format:
    """Return the format that the suffix of the file stands for, text by default."""
    suffix = file.suffix[1:].lower() if file else ""
    return next((known for known in FORMATS if known == suffix), "txt")
