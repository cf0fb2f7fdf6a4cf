"""Submits videos for `sharecap caption`, follows the jobs and writes their results.

A job continues in the service if the command is interrupted. The command then prints how to watch and cancel it.
"""

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.text import Text

from sharecap_client.api import AsyncClient
from sharecap_client.cli.connection import Service
from sharecap_client.cli.errors import CommandFailed, describe, with_flags
from sharecap_client.cli.output import Output
from sharecap_client.cli.terminal import printable, show_job
from sharecap_client.errors import ServiceUnreachable, SharecapError, Unauthorized
from sharecap_client.models import Job, JobStatus

STDIN = "-"
URL_SCHEMES = ("http://", "https://")

out = Console(highlight=False)
notes = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class VideoInput:
    """A video named on the command line: a URL, a path, or standard input, which `video` then contains."""

    name: str
    video: str | Path | BinaryIO


def resolve_inputs(names: Sequence[str]) -> list[VideoInput]:
    """Return the inputs in order. Raises CommandFailed before anything is sent if one of them cannot be read."""
    return [_resolve(name) for name in names]


def note(text: str) -> None:
    """Print one line on standard error."""
    notes.print(Text(printable(text)), soft_wrap=True)


async def caption_inputs(
    service: Service, inputs: Sequence[VideoInput], options: Mapping[str, Any], output: Output, concurrency: int
) -> int:
    """Caption one video or several. Returns the exit status: 0 if all jobs completed, else 1."""
    async with service.client() as client:
        if len(inputs) > 1:
            return await SeveralVideos(service, client, options, output).run(inputs, concurrency)
        try:
            job_id = await _submit(client, inputs[0], options, progress=output.shown)
        except asyncio.CancelledError:
            note("interrupted before the service confirmed the job; `sharecap jobs` shows whether it exists")
            raise
        return await finish(service, client, job_id, output)


async def finish(service: Service, client: AsyncClient, job_id: str, output: Output, *, new: bool = True) -> int:
    """Follow a job to its end and write the result. Returns 0 if it completed, else 1.

    `new`: print the id of the job first, and nothing else if the output is detached.
    """
    if output.detached:
        print(job_id)
        return 0
    if new:
        note(f"job {job_id}")
    with _explain_interruption(service, {job_id: ""}, new):
        completed = await show_job(client, job_id, out if output.shown else Console(quiet=True))
    job = await client.job(job_id)
    write(job, output)
    return 0 if completed else 1


def write(job: Job, output: Output) -> None:
    """Write the result of an ended job, unless it was shown. Says why a job without a result failed."""
    if output.shown and output.file is None and output.directory is None:
        return
    if job.status is JobStatus.COMPLETED or output.format == "json":
        if path := output.write(job):
            note(f"wrote {path}")
    elif not output.shown:
        note(outcome(job))


def outcome(job: Job) -> str:
    """Return how a job ended, in words."""
    if job.error is None:
        return job.status.value
    return f"failed: {with_flags(job.error.detail, job.error.code)} ({job.error.code})"


class SeveralVideos:
    """Captions several videos, a bounded number of them at a time. A video that fails does not stop the others."""

    def __init__(self, service: Service, client: AsyncClient, options: Mapping[str, Any], output: Output) -> None:
        self._service, self._client, self._options, self._output = service, client, options, output
        self._unfinished: dict[str, str] = {}  # names by job id
        self._waiting = 0

    async def run(self, inputs: Sequence[VideoInput], concurrency: int) -> int:
        """Return the exit status: 0 if all jobs completed, else 1."""
        limit, self._waiting = asyncio.Semaphore(concurrency), len(inputs)
        try:
            with _explain_interruption(self._service, self._unfinished):
                succeeded = await asyncio.gather(*(self._run_one(limit, one) for one in inputs))
        except asyncio.CancelledError:
            note(f"{self._waiting} of {len(inputs)} videos were not sent")
            raise
        done = "sent" if self._output.detached else "captioned"
        note(f"{sum(succeeded)} of {len(inputs)} videos {done}")
        return 0 if all(succeeded) else 1

    async def _run_one(self, limit: asyncio.Semaphore, video: VideoInput) -> bool:
        async with limit:
            try:
                job_id = await _submit(self._client, video, self._options, progress=False)
                self._waiting -= 1
                if self._output.detached:
                    print(job_id)
                    return True
                self._unfinished[job_id] = video.name
                note(f"{video.name}: job {job_id}")
                job = await self._client.wait(job_id, check=False)
            except (ServiceUnreachable, Unauthorized):  # the other videos would fail for the same reason
                raise
            except SharecapError as error:
                note(f"{video.name}: {describe(error)}")
                return False
        del self._unfinished[job_id]
        completed = job.status is JobStatus.COMPLETED
        path = self._output.write(job) if completed or self._output.format == "json" else None
        note(f"{video.name}: {outcome(job)}{f', wrote {path}' if path else ''}")
        return completed


def _resolve(name: str) -> VideoInput:
    if name.startswith(URL_SCHEMES):
        return VideoInput(name, name)
    if name == STDIN:
        return VideoInput("stdin", _read_stdin())
    path = Path(name)
    if path.is_dir():
        raise CommandFailed(f"{name} is a folder: `sharecap batch {name} --out RUN` captions the videos in it")
    try:
        with path.open("rb"):
            return VideoInput(name, path)
    except OSError as error:
        raise CommandFailed(f"cannot read {name}: {error.strerror}") from None


def _read_stdin() -> BinaryIO:
    """Return a temporary file with everything from standard input, so that the upload can be repeated."""
    if sys.stdin.isatty():
        raise CommandFailed("- reads a video from standard input: sharecap caption - < clip.mp4")
    file = tempfile.TemporaryFile()  # noqa: SIM115 (it is deleted when it is closed, at the latest at the end)
    shutil.copyfileobj(sys.stdin.buffer, file)
    return file


async def _submit(client: AsyncClient, video: VideoInput, options: Mapping[str, Any], *, progress: bool) -> str:
    """Send the video, with a progress bar in a terminal. Returns the job's id."""
    if isinstance(video.video, str):
        return (await client.caption(video.video, **options)).id
    columns = (TextColumn("[dim]sending"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, console=out, transient=True, disable=not (progress and out.is_terminal))
    with bar, _opened(bar, video) as file:
        return (await client.caption(file, filename=Path(video.name).name, **options)).id


@contextmanager
def _opened(bar: Progress, video: VideoInput) -> Iterator[BinaryIO]:
    """Open the video; reading it advances the bar. Raises CommandFailed."""
    if isinstance(video.video, Path):
        try:
            file = bar.open(video.video, "rb")
        except OSError as error:
            raise CommandFailed(f"cannot read {video.name}: {error.strerror}") from None
        with file:
            yield file
        return
    assert not isinstance(video.video, str)
    with video.video as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        yield bar.wrap_file(file, size)


@contextmanager
def _explain_interruption(service: Service, jobs: Mapping[str, str], lost: bool = True) -> Iterator[None]:
    """If the block is interrupted, say that these unfinished jobs (names by id) continue, and how to reach them.

    `lost`: do so as well if the service has become unreachable.
    """
    try:
        yield
    except (asyncio.CancelledError, ServiceUnreachable) as error:
        if lost or isinstance(error, asyncio.CancelledError):
            for job_id, name in jobs.items():
                note(f"{name}{': ' if name else ''}the job continues in the service")
                note(f"  watch it:   {service.command('watch', job_id)}")
                note(f"  cancel it:  {service.command('cancel', job_id)}")
        raise
