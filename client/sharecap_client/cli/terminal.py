"""Jobs of a running service in a terminal: send a video, show its captions as they are written, keep them line by line.

In a pipe or a file the same lines come without colour and without the moving part. All text comes from a model or a
service, so nothing in it is taken for markup or for a terminal's control sequence.
"""

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.padding import Padding
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from sharecap_client.api import Client, RequestFailed
from sharecap_client.events import (
    Cancelled,
    Caption,
    Completed,
    Delta,
    Differential,
    Event,
    Failed,
    Keyframes,
    Queued,
    Started,
    Video,
)

TIME_WIDTH = 10


async def caption_video(
    client: Client, video: str, options: Mapping[str, object], console: Console, as_json: bool = False
) -> int:
    """Caption a file or an address; show it, or print the finished job as JSON. Return 0 where it completed, else 1.

    Raises RequestFailed where the service refuses or is gone, or the file cannot be read.
    """
    async with client:
        return await _follow(client, await _submit(client, video, options, console), console, as_json)


async def recaption_prompt(client: Client, prompt: str, console: Console, as_json: bool = False) -> int:
    """Write a short prompt out; shown and answered as by `caption_video`."""
    async with client:
        return await _follow(client, await client.submit_recaption(prompt), console, as_json)


async def _submit(client: Client, video: str, options: Mapping[str, object], console: Console) -> str:
    if video.startswith(("http://", "https://")):
        return await client.submit_url(video, options)
    columns = (TextColumn("[dim]sending"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    shown = console.is_terminal and not console.quiet
    try:
        with (
            Progress(*columns, console=console, transient=True, disable=not shown) as progress,
            progress.open(video, "rb") as file,
        ):
            return await client.submit_file(file, video, options)
    except OSError as error:
        raise RequestFailed(f"cannot read {video}: {error.strerror or error}") from None


async def _follow(client: Client, job_id: str, console: Console, as_json: bool) -> int:
    with JobDisplay(Console(quiet=True) if as_json else console) as display:
        async for event in client.follow(job_id):
            display.show(event)
    if as_json:
        print((await client.job(job_id)).model_dump_json(indent=2))
    return 0 if display.completed else 1


class JobDisplay:
    """Shows one job. Give it every event in order; `completed` says in the end whether the job was."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.completed = False
        self._doing = "waiting for a worker"
        self._being_written: dict[int | None, str] = {}  # by keyframe; none is the caption
        self._times_s: dict[int, float] = {}
        self._written = 0
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
        """Print what is final, and show what is under way below it."""
        match event:
            case Queued():
                self._doing = "waiting for a worker"
            case Started():
                self._doing, self._being_written = "opening the video", {}
            case Video():
                self._note(f"{event.width} × {event.height}, {event.duration_s:.2f} s, {event.fps:g} frames a second")
                self._doing = "looking for keyframes"
            case Keyframes():
                self._times_s.update({keyframe.index: keyframe.time_s for keyframe in event.keyframes})
                self._say_where(event.complete)
            case Delta():
                self._being_written[event.keyframe] = self._being_written.get(event.keyframe, "") + event.text
            case Differential():
                self._being_written.pop(event.keyframe, None)
                self._written += 1
                self._line(f"{event.time_s:.2f} s", event.text)
            case Caption():
                self._being_written = {}
                self._line("caption", event.text, "bold")
            case Completed() | Failed() | Cancelled():
                self._end(event)
        self._refresh()

    def _say_where(self, complete: bool) -> None:
        self._doing = f"captioning {len(self._times_s)} keyframes" + ("" if complete else " so far")

    def _end(self, event: Completed | Failed | Cancelled) -> None:
        self._doing, self._being_written = "", {}
        match event:
            case Completed():
                self.completed = True
                usage = event.usage
                self._note(
                    f"completed: {usage.prompt_tokens:,} tokens read, {usage.image_tokens:,} of them of images, "
                    f"{usage.completion_tokens:,} written"
                )
            case Failed():
                self._line("failed", f"{event.error.detail} ({event.error.code})", "red")
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
        if self._being_written:
            first = next(iter(self._being_written.values()))  # of several at once
            self._live.update(_row("…", Text(printable(first), "dim")))
        elif self._doing:
            self._live.update(Padding(Spinner("dots", Text(self._doing, "dim")), (0, 0, 0, TIME_WIDTH)))
        else:
            self._live.update(Text(""))


def printable(text: str) -> str:
    """Return `text` with whatever a terminal might obey made harmless."""
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in text)


def _row(label: str, text: Text) -> Table:
    row = Table.grid(padding=(0, 2, 0, 0))
    row.add_column(width=TIME_WIDTH - 2, justify="right", style="cyan", no_wrap=True)
    row.add_column()
    row.add_row(label, text)
    return row
