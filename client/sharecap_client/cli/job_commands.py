"""`sharecap jobs`, `show`, `clips`, `watch`, `cancel` and `rm`: commands about jobs that exist."""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sharecap_client.api import DEFAULT_URL, AsyncClient
from sharecap_client.cli.caption_commands import JobId
from sharecap_client.cli.captioning import finish, note, out, outcome, write
from sharecap_client.cli.connection import ApiKey, Service, Url
from sharecap_client.cli.errors import describe
from sharecap_client.cli.output import FormatOption, JsonOption, OutOption, Output
from sharecap_client.cli.run import run
from sharecap_client.cli.terminal import printable
from sharecap_client.errors import NotFound
from sharecap_client.formats import as_text, clock, name_of
from sharecap_client.models import Job, JobStatus, JobSummary

MAX_LISTED = 20

JobIds = Annotated[list[str], typer.Argument(metavar="ID…", help="Ids of jobs, cap_…; `sharecap jobs` lists them.")]
Status = Literal["queued", "running", "completed", "failed", "cancelled"]
AsJsonLines = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]


def jobs(
    *,
    status: Annotated[Status | None, typer.Option(help="Only jobs with this status.")] = None,
    kind: Annotated[Literal["video", "clip", "recaption"] | None, typer.Option(help="Only jobs of this kind.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, help="Maximum number of jobs; 0: all.")] = MAX_LISTED,
    as_json: AsJsonLines = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """List your jobs, newest first."""
    run(_list_jobs(Service(url, api_key), status, kind, limit, as_json))


def show(
    *,
    job_id: JobId,
    output: FormatOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Show a job with its captions so far, without waiting for more."""
    run(_show(Service(url, api_key), job_id, Output(output, out, as_json)))


def clips(*, job_id: JobId, as_json: AsJsonLines = False, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """List the clips of a video job with their captions, newest first."""
    run(_list_clips(Service(url, api_key), job_id, as_json))


def watch(
    *,
    job_id: JobId,
    output: FormatOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Show a job from its beginning until it ends.

    If the connection breaks, the command continues where it was. Ctrl-C leaves the job running.
    """
    run(_watch(Service(url, api_key), job_id, Output(output, out, as_json)))


def cancel(*, job_ids: JobIds, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Cancel jobs. Captions that are finished are kept."""
    run(_cancel(Service(url, api_key), job_ids))


def remove(*, job_ids: JobIds, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Delete jobs with all their results. Unfinished jobs are cancelled first."""
    run(_remove(Service(url, api_key), job_ids))


def register(app: typer.Typer) -> None:
    """Add this module's commands to `app`."""
    for command in (jobs, show, clips, watch, cancel):
        app.command()(command)
    app.command("rm")(remove)


async def _list_jobs(service: Service, status: str | None, kind: str | None, limit: int, as_json: bool) -> int:
    async with service.client() as client:
        listed = [job async for job in _first(client.jobs(status=status, kind=kind), limit)]
    if as_json:
        for job in listed:
            print(job.model_dump_json())
    elif listed:
        _print_table(listed)
    else:
        note("no job matches" if status or kind else "you have no jobs yet: `sharecap caption clip.mp4` makes one")
    return 0


async def _first(items: AsyncIterator[JobSummary], limit: int) -> AsyncIterator[JobSummary]:
    """Yield the first `limit` items, all if it is 0."""
    count = 0
    async for item in items:
        yield item
        count += 1
        if count == limit:
            return


def _print_table(listed: list[JobSummary]) -> None:
    """Print the jobs as a table or, if the output is not a terminal, as lines with tabs between the columns."""
    rows = [(job.id, job.status.value, job.kind, f"{job.created_at:%Y-%m-%d %H:%M}", _name(job)) for job in listed]
    if not sys.stdout.isatty():
        for row in rows:
            print(*row, sep="\t")
        return
    table = Table("id", "status", "kind", "created (UTC)", "name", box=None)
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    out.print(table)


def _name(job: JobSummary) -> str:
    """Return the title, which older services do not send."""
    source = job.source
    return " ".join(printable(job.title or (source and (source.filename or source.url)) or job.parent or "").split())


async def _show(service: Service, job_id: str, output: Output) -> int:
    async with service.client() as client:
        job = await client.job(job_id)
    if output.shown:
        _print_job(job)
    write(job, output)
    return 0


def _print_job(job: Job) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(Text(f"{job.id}  {job.kind}  {outcome(job)}  {printable(name_of(job))}"))
    console.print(Text(printable(as_text(job))), end="")


async def _list_clips(service: Service, job_id: str, as_json: bool) -> int:
    async with service.client() as client:
        listed = [clip async for clip in client.clips(job_id)]
    for clip in listed:
        print(clip.model_dump_json() if as_json else _clip_line(clip))
    if not listed:
        note(f"this job has no clips yet: `sharecap clip {job_id} --start S --end S` makes one")
    return 0


def _clip_line(clip: Job) -> str:
    start_s, end_s = (clock(float(clip.options[name])) for name in ("start_s", "end_s"))
    text = " ".join(printable(clip.caption or outcome(clip)).split())
    return f"{clip.id}  {start_s}–{end_s}  {text}"


async def _watch(service: Service, job_id: str, output: Output) -> int:
    async with service.client() as client:
        return await finish(service, client, job_id, output, new=False)


async def _cancel(service: Service, job_ids: list[str]) -> int:
    async def cancel_one(client: AsyncClient, job_id: str) -> str:
        job = await client.cancel(job_id)
        if job.status is JobStatus.RUNNING:
            return "stops within seconds"
        return "is cancelled" if job.status is JobStatus.CANCELLED else f"had already ended ({job.status.value})"

    return await _for_each(service, job_ids, cancel_one)


async def _remove(service: Service, job_ids: list[str]) -> int:
    async def remove_one(client: AsyncClient, job_id: str) -> str:
        await client.delete(job_id)
        return "is deleted"

    return await _for_each(service, job_ids, remove_one)


async def _for_each(service: Service, job_ids: list[str], act: Callable[[AsyncClient, str], Awaitable[str]]) -> int:
    """Act on each job and print what happened. Continues after unknown ids; returns 1 if there was one."""
    status = 0
    async with service.client() as client:
        for job_id in job_ids:
            try:
                note(f"{job_id} {await act(client, job_id)}")
            except NotFound as error:
                status = 1
                note(f"{job_id}: {describe(error)}")
    return status
