"""`sharecap caption`, `recaption` and `clip`: commands that submit jobs."""

from typing import Annotated, Any

import typer

from sharecap_client.api import DEFAULT_URL, AsyncSubmittedJob
from sharecap_client.cli.captioning import caption_inputs, finish, resolve_inputs
from sharecap_client.cli.connection import ApiKey, Service, Url
from sharecap_client.cli.option_flags import with_options
from sharecap_client.cli.output import DetachOption, FormatOption, JsonOption, OutOption, Output
from sharecap_client.cli.run import run
from sharecap_client.options import JobOptions, VideoOptions

CONCURRENCY = 4

JobId = Annotated[str, typer.Argument(metavar="ID", help="Id of a job, cap_…; `sharecap jobs` lists them.")]


@with_options(VideoOptions)
def caption(
    *,
    videos: Annotated[
        list[str], typer.Argument(metavar="FILE|URL|-…", help="Video files, http(s) URLs, or - for standard input.")
    ],
    output: FormatOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
    detach: DetachOption = False,
    concurrency: Annotated[
        int, typer.Option(min=1, help="How many of several videos are captioned at the same time.")
    ] = CONCURRENCY,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    options: dict[str, Any],
) -> None:
    """Caption videos with a running service.

    The captions are shown while they are generated. The id of the job is printed at once; Ctrl-C leaves the job
    running, and `sharecap watch ID` shows it again.

    sharecap caption clip.mp4

    sharecap caption *.mp4 --out captions/ --format srt
    """
    target = Output(output, out, as_json, several=len(videos) > 1, detached=detach)
    run(caption_inputs(Service(url, api_key), resolve_inputs(videos), options, target, concurrency))


@with_options(JobOptions)
def recaption(
    *,
    prompt: Annotated[str, typer.Argument(help="A short text-to-video prompt.")],
    output: FormatOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
    detach: DetachOption = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    options: dict[str, Any],
) -> None:
    """Expand a short text-to-video prompt into a dense caption.

    sharecap recaption "a red fox in the snow"
    """
    service = Service(url, api_key)
    run(_submit(service, Output(output, out, as_json, detached=detach), "recaption", prompt, **options))


@with_options(JobOptions)
def clip(
    *,
    job_id: JobId,
    start_s: Annotated[float, typer.Option("--start", help="Start of the part in seconds.")],
    end_s: Annotated[float, typer.Option("--end", help="End of the part in seconds.")],
    output: FormatOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
    detach: DetachOption = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    options: dict[str, Any],
) -> None:
    """Caption a part of a video that was captioned before.

    The text is generated from the captions of the job, without reading the video again. `sharecap clips ID` lists the
    clips of a job.

    sharecap clip cap_… --start 2 --end 7.5
    """
    service = Service(url, api_key)
    run(_submit(service, Output(output, out, as_json, detached=detach), "clip", job_id, start_s, end_s, **options))


async def _submit(service: Service, output: Output, method: str, *arguments: Any, **options: Any) -> int:
    """Submit a job with a method of the client, and follow it."""
    async with service.client() as client:
        job: AsyncSubmittedJob = await getattr(client, method)(*arguments, **options)
        return await finish(service, client, job.id, output)


def register(app: typer.Typer) -> None:
    """Add this module's commands to `app`."""
    for command in (caption, recaption, clip):
        app.command()(command)
