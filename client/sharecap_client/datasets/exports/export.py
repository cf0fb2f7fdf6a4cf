"""Runs an export: chooses the rows, places the videos, and has the format's files written."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from sharecap_client.datasets.errors import StoreError
from sharecap_client.datasets.exports.clips import Clip, Names, Report, one_line, suffix_of, usable
from sharecap_client.datasets.exports.table import FORMATS, Format
from sharecap_client.datasets.exports.target import Target, building, mark
from sharecap_client.datasets.exports.videos import Placement, open_video, place, require
from sharecap_client.datasets.rows import Row


def select(trainer: str, kind: str | None = None) -> Format:
    """Return a format by the trainer's name and, if it has several, the kind of files. Raises StoreError."""
    kinds = FORMATS.get(trainer)
    if kinds is None:
        raise StoreError(f"unknown trainer {trainer}: choose one of {', '.join(FORMATS)}")
    if kind is not None and kind not in kinds:
        raise StoreError(f"{trainer} has no format {kind}: choose one of {', '.join(kinds)}")
    return kinds[kind or next(iter(kinds))]


def export(
    rows: Iterable[Row], form: Format, path: Path, placement: Placement = "link", *, replace: bool = False
) -> Report:
    """Write the files of a format to `path`. Raises StoreError or OSError; then `path` is as it was before."""
    if placement == "leave":
        return _export_in_place(rows, form, path)
    with building(path, replace) as target:
        selection = Selection(form, target, placement)
        form.write(selection.clips(rows), target)
        if not selection.report.written:
            raise StoreError(f"there is nothing to export: {describe(selection.report)}")
        mark(target, captions=selection.report.written)
    return selection.report


def describe(report: Report) -> str:
    """Return how many rows were left out and why, in words."""
    total = sum(report.left_out.values())
    reasons = ", ".join(f"{count} × {reason}" for reason, count in report.left_out.most_common())
    return f"{total} left out ({reasons})" if total else "none left out"


def _export_in_place(rows: Iterable[Row], form: Format, path: Path) -> Report:
    if not path.is_dir():
        raise StoreError(f"{path} is not a folder: with --videos leave, it is the folder with the videos")
    if form.videos == "inside" or form.folder:
        raise StoreError("this format needs a folder of its own: use --videos link or copy")
    target = Target(path, path.absolute())
    selection = Selection(form, target, "leave")
    form.write(selection.clips(rows), target)
    return selection.report


@dataclass
class Selection:
    """The clips of an export, in the order of the rows."""

    form: Format
    target: Target
    placement: Placement
    report: Report = field(default_factory=Report)

    def clips(self, rows: Iterable[Row]) -> Iterator[Clip]:
        """Yield the clips, each after its video is in place. Others are counted in the report."""
        names = Names(self.form.flat)
        for row in usable(rows, self.form.needs, self.report):
            reason = self._unsuitable(row)
            clip = None if reason else self._named(row, names)
            reason = reason or (self._misplaced(clip) if clip else "shares its caption file with another video")
            if clip is not None and reason is None:
                self.report.written += 1
                yield clip
            else:
                self.report.left_out[str(reason)] += 1

    def _unsuitable(self, row: Row) -> str | None:
        suffix = self.form.suffix
        return None if suffix in (None, suffix_of(row.video).lower()) else f"not {suffix}"

    def _named(self, row: Row, names: Names) -> Clip | None:
        """Return the clip, or None if the videos keep their names and another one has the same caption file."""
        if self.placement != "leave":
            return Clip(row, names.choose(row), one_line(row.text or ""))
        clip = Clip(row, row.id, one_line(row.text or ""))
        return clip if names.take(clip.stem) else None

    def _misplaced(self, clip: Clip) -> str | None:
        """Put the video into its place. Returns a reason if that is not possible."""
        path = self.target.folder / self.form.folder / clip.name
        if self.placement == "leave":
            inside = ".." not in PurePosixPath(clip.name).parts and not PurePosixPath(clip.name).is_absolute()
            return None if inside and path.is_file() else "the video is not in the folder"
        try:
            if self.form.videos == "files":
                place(clip.row.video, path, self.placement)
            elif self.form.videos == "inside":
                require(clip.row.video)
                with open_video(clip.row.video):
                    pass  # a remote one exists if it can be opened
        except FileNotFoundError:
            return "the video is missing"
        return None
