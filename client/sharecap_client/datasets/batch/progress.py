"""What a run has done so far, and how it is shown: a display in a terminal, lines elsewhere, or JSON events."""

import json
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sharecap_client.cli.terminal import printable
from sharecap_client.datasets.rows import Row
from sharecap_client.models import JobStatus

WINDOW_S = 60.0
"""Rates are those of the last minute."""
SAMPLE_S = 1.0
LINE_EVERY_S = 10.0
NOTE_EVERY_S = 30.0
"""A note is not repeated within this time."""


@dataclass
class Totals:
    """Numbers of a run. `total` is None until the input is counted; `skipped` were in the store or came twice."""

    total: int | None = None
    skipped: int = 0
    completed: int = 0
    failed: int = 0
    video_s: float = 0.0
    tokens: int = 0
    last: Row | None = None
    ended: bool = False
    started: float = field(default_factory=time.monotonic)
    samples: deque[tuple[float, int, float]] = field(default_factory=deque)

    @property
    def finished(self) -> int:
        return self.completed + self.failed

    def add(self, row: Row) -> None:
        self._sample()
        if row.state is JobStatus.COMPLETED:
            self.completed += 1
            self.last = row
        else:
            self.failed += 1
        self.video_s += row.duration_s or 0.0
        self.tokens += row.usage.completion_tokens if row.usage else 0

    def _sample(self) -> None:
        now = time.monotonic()
        if not self.samples or now - self.samples[-1][0] >= SAMPLE_S:
            self.samples.append((now, self.finished, self.video_s))
        while now - self.samples[0][0] > WINDOW_S:
            self.samples.popleft()

    @property
    def begun(self) -> bool:
        """Whether any video was looked at."""
        return self.total is not None or self.finished + self.skipped > 0

    @property
    def rates(self) -> tuple[float, float]:
        """Clips per second, and hours of video per hour: of the last minute or, at the end, of the whole run."""
        start = (self.started, 0, 0.0)
        then, finished, video_s = self.samples[0] if self.samples and not self.ended else start
        elapsed_s = max(time.monotonic() - then, 0.001)
        return (self.finished - finished) / elapsed_s, (self.video_s - video_s) / elapsed_s

    @property
    def remaining_s(self) -> float | None:
        """The estimated time until everything is done, or None if it is not known."""
        clips_per_s, _ = self.rates
        if self.total is None or not clips_per_s:
            return None
        return max(0, self.total - self.skipped - self.finished) / clips_per_s

    def as_json(self) -> dict[str, Any]:
        clips_per_s, hours_per_hour = self.rates
        remaining_s = self.remaining_s
        return {
            "total": self.total,
            "skipped": self.skipped,
            "completed": self.completed,
            "failed": self.failed,
            "clips_per_s": round(clips_per_s, 3),
            "video_hours_per_hour": round(hours_per_hour, 2),
            "remaining_s": None if remaining_s is None else round(remaining_s),
            "completion_tokens": self.tokens,
        }

    def as_line(self) -> str:
        clips_per_s, hours_per_hour = self.rates
        of_total = "" if self.total is None else f" of {self.total - self.skipped:,}"
        parts = [f"{self.completed:,}{of_total} captioned", f"{self.failed:,} failed"]
        if self.skipped:
            parts.append(f"{self.skipped:,} already there")
        parts += [f"{clips_per_s:.2f} clips/s", f"{hours_per_hour:.1f} video-hours/h", f"{self.tokens:,} tokens"]
        if self.ended:
            parts.append(duration(time.monotonic() - self.started))
        elif (remaining_s := self.remaining_s) is not None and self.finished:
            parts.append(f"about {duration(remaining_s)} left")
        return ", ".join(parts)


class Progress(Protocol):
    """Shows a run. Use it with `with`."""

    totals: Totals

    def __enter__(self) -> "Progress": ...
    def __exit__(self, *_: object) -> None: ...
    def counted(self, total: int) -> None: ...
    def skipped(self) -> None: ...
    def row(self, row: Row) -> None: ...
    def note(self, text: str) -> None: ...


class Notes:
    """Decides which notes are shown: the same one not again within `NOTE_EVERY_S`."""

    def __init__(self) -> None:
        self._shown: dict[str, float] = {}

    def is_due(self, text: str) -> bool:
        """Return whether this note is to be shown now, and remember that it was."""
        now = time.monotonic()
        self._shown = {known: at for known, at in self._shown.items() if now - at < NOTE_EVERY_S}
        is_due = text not in self._shown
        self._shown.setdefault(text, now)
        return is_due


class Lines:
    """Prints a line every ten seconds on standard error, and one for each failure."""

    def __init__(self, console: Console) -> None:
        self.totals = Totals()
        self._console = console
        self._printed = time.monotonic()
        self._notes = Notes()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.totals.ended = True
        if self.totals.begun:
            self.line(self.totals.as_line())

    def counted(self, total: int) -> None:
        self.totals.total = total
        self.changed()

    def skipped(self) -> None:
        self.totals.skipped += 1

    def row(self, row: Row) -> None:
        self.totals.add(row)
        if row.state is not JobStatus.COMPLETED:
            self.line(f"{row.id}: {reason(row)}")
        self.changed()

    def note(self, text: str) -> None:
        if self._notes.is_due(text):
            self.line(text)

    def line(self, text: str) -> None:
        self._console.print(Text(printable(text)), soft_wrap=True)

    def changed(self) -> None:
        """Print a line if the last one is old."""
        if time.monotonic() - self._printed >= LINE_EVERY_S:
            self._printed = time.monotonic()
            self.line(self.totals.as_line())


class Display(Lines):
    """Shows a bar, the numbers and the last caption at the bottom of a terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live = Live(console=console, get_renderable=self._picture, refresh_per_second=4, transient=True)

    def __enter__(self) -> "Progress":
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.__exit__(None, None, None)
        super().__exit__()

    def changed(self) -> None:
        pass  # the display refreshes itself

    def _picture(self) -> Group:
        totals, caption = self.totals, Table.grid(padding=(0, 2, 0, 0))
        if totals.last is not None:
            text = " ".join(printable(totals.last.caption or "").split())
            caption.add_row(
                Text(printable(totals.last.id), "cyan"), Text(text, "dim", overflow="ellipsis", no_wrap=True)
            )
        todo = None if totals.total is None else max(1, totals.total - totals.skipped)
        bar = ProgressBar(total=todo, completed=totals.finished, pulse=todo is None)
        return Group(caption, bar, Text(totals.as_line()))


class Events:
    """Prints one JSON object per line on standard output: for each row, each note, each second and the end."""

    def __init__(self) -> None:
        self.totals = Totals()
        self._printed = 0.0
        self._notes = Notes()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.totals.ended = True
        self._print("end", self.totals.as_json())

    def counted(self, total: int) -> None:
        self.totals.total = total

    def skipped(self) -> None:
        self.totals.skipped += 1

    def row(self, row: Row) -> None:
        self.totals.add(row)
        self._print("row", row.model_dump(mode="json", include={"id", "state", "job", "caption", "error", "attempt"}))
        if time.monotonic() - self._printed >= SAMPLE_S:
            self._printed = time.monotonic()
            self._print("progress", self.totals.as_json())

    def note(self, text: str) -> None:
        if self._notes.is_due(text):
            self._print("note", {"text": text})

    def _print(self, event: str, fields: dict[str, Any]) -> None:
        print(json.dumps({"event": event, **fields}, ensure_ascii=False), flush=True)


def progress_for(*, as_json: bool) -> Progress:
    """Return the display that suits where the output goes."""
    if as_json:
        return Events()
    console = Console(stderr=True, highlight=False)
    return Display(console) if sys.stderr.isatty() else Lines(console)


def reason(row: Row) -> str:
    """Return why a row failed."""
    return f"failed: {row.error.detail} ({row.error.code})" if row.error else row.state.value


def duration(seconds: float) -> str:
    """Return a time as 2 d 3 h, 3 h 20 min, 5 min or 12 s."""
    minutes, hours = round(seconds / 60), int(seconds / 3600)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
