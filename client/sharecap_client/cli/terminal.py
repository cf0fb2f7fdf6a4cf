"""Shows a job of a running service in a terminal: finished captions line by line, the current one while it grows.

If the output is a pipe or a file, only the finished lines are printed, without colour. All text comes from a model or
a service, so it is never interpreted as markup or as terminal control sequences.
"""

from contextlib import aclosing
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.padding import Padding
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from sharecap_client.api import AsyncClient
from sharecap_client.cli.errors import with_flags
from sharecap_client.events import (
    Cancelled,
    Caption,
    Completed,
    Delta,
    Differential,
    Event,
    Failed,
    Fetching,
    Keyframes,
    Queued,
    Started,
    Video,
)

TIME_WIDTH = 10


async def show_job(client: AsyncClient, job_id: str, console: Console) -> bool:
    """Show the job from its first event to its last. Returns whether it completed."""
    with JobDisplay(console) as display:
        async with aclosing(client.events(job_id)) as events:
            async for event in events:
                display.show(event)
    return display.completed


class JobDisplay:
    """Shows one job. Pass every event to `show` in order; `completed` is true after a `completed` event."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.completed = False
        self._activity = "waiting for a worker"
        self._unfinished: dict[int | None, str] = {}  # text by keyframe; None stands for the caption
        self._times_s: dict[int, float] = {}
        self._live = Live(console=console, transient=True, refresh_per_second=10)

    def __enter__(self) -> Self:
        self._live.__enter__()
        self._refresh()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def show(self, event: Event) -> None:
        """Print finished text, and show the current activity below it."""
        match event:
            case Queued():
                self._activity = "waiting for a worker"
            case Started():
                self._activity, self._unfinished = "opening the video", {}
            case Fetching():
                received, total = event.received_bytes, event.total_bytes
                amount = f"{100 * received // total} %" if total else f"{received // 1_000_000} MB"
                self._activity = f"fetching the video, {amount}"
            case Video():
                self._note(f"{event.width} × {event.height}, {event.duration_s:.2f} s, {event.fps:g} frames a second")
                self._activity = "choosing keyframes"
            case Keyframes():
                self._times_s.update({keyframe.index: keyframe.time_s for keyframe in event.keyframes})
                self._count_keyframes(event.complete)
            case Delta():
                self._unfinished[event.keyframe] = self._unfinished.get(event.keyframe, "") + event.text
            case Differential():
                self._unfinished.pop(event.keyframe, None)
                self._line(f"{event.time_s:.2f} s", _finished(event))
            case Caption():
                self._unfinished = {}
                self._line("caption", _finished(event), "bold")
            case Completed() | Failed() | Cancelled():
                self._end(event)
        self._refresh()

    def _count_keyframes(self, complete: bool) -> None:
        self._activity = f"captioning {len(self._times_s)} keyframes" + ("" if complete else " so far")

    def _end(self, event: Completed | Failed | Cancelled) -> None:
        self._activity, self._unfinished = "", {}
        match event:
            case Completed():
                self.completed = True
                usage = event.usage
                self._note(
                    f"completed: {usage.prompt_tokens:,} prompt tokens ({usage.image_tokens:,} of them image tokens), "
                    f"{usage.completion_tokens:,} generated"
                )
            case Failed():
                self._line("failed", f"{with_flags(event.error.detail, event.error.code)} ({event.error.code})", "red")
            case Cancelled():
                self._line("cancelled", "the job was cancelled", "yellow")

    def _line(self, label: str, text: str, style: str = "") -> None:
        if self.console.is_terminal:
            self.console.print(_row(label, Text(printable(text), style)))
        else:
            self.console.print(Text(f"{label:>{TIME_WIDTH - 2}}  {printable(text)}"), soft_wrap=True)

    def _note(self, text: str) -> None:
        self._line("", text, "dim")

    def _refresh(self) -> None:
        if self._unfinished:
            first = next(iter(self._unfinished.values()))  # shots are captioned at once; one line is enough
            self._live.update(_row("…", Text(printable(first), "dim")))
        elif self._activity:
            self._live.update(Padding(Spinner("dots", Text(self._activity, "dim")), (0, 0, 0, TIME_WIDTH)))
        else:
            self._live.update(Text(""))


def _finished(event: Differential | Caption) -> str:
    return f"{event.text} (cut off at max_tokens)" if event.finish_reason == "length" else event.text


def printable(text: str) -> str:
    """Return `text` with control characters replaced, so that a terminal cannot interpret them."""
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in text)


def _row(label: str, text: Text) -> Table:
    row = Table.grid(padding=(0, 2, 0, 0))
    row.add_column(width=TIME_WIDTH - 2, justify="right", style="cyan", no_wrap=True)
    row.add_column()
    row.add_row(label, text)
    return row
