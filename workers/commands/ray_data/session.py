"""Opens or creates the directory of a run, captions with Ray what it lacks, and returns the exit status."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from pydantic import ValidationError
from ray.exceptions import RayError
from sharecap_client.cli.errors import CommandFailed
from sharecap_client.cli.run import EXIT_INTERRUPTED
from sharecap_client.datasets.batch.inputs import STDIN, Inputs
from sharecap_client.datasets.batch.progress import Progress, progress_for
from sharecap_client.datasets.batch.selection import Failed, Selection
from sharecap_client.datasets.batch.session import EXIT_SOME_FAILED, absolute, choose_root, set_inputs, set_options
from sharecap_client.datasets.batch.tables import Columns
from sharecap_client.datasets.manifest import Manifest
from sharecap_client.models import JobStatus

from service.contract.jobs import VideoOptions
from workers.commands.ray_data.clips import Clip
from workers.commands.ray_data.dataset import LOCAL, caption_dataset, start_ray
from workers.commands.ray_data.directory import RunDirectory
from workers.commands.ray_data.object_stores import use_pyarrow_for_s3
from workers.main import check_model
from workers.models.engine import CannotWork
from workers.settings import Settings

PROGRESS_EVERY_S = 5.0
CAUSE = re.compile(r"(?!ray\.)[\w.]+: \S")
"""A line of a stack trace with an exception that is not one of Ray's."""
NOT_PASSED_ON = frozenset({"data_dir", "redis_url"})
"""Settings of this process that do not hold in the actors."""


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    inputs: list[str]
    out: str
    options: dict[str, Any]
    gpus: int
    address: str
    model: str | None
    retry_failed: bool
    redo: bool
    video_column: str
    id_column: str | None
    root: Path | None
    as_json: bool


def run(request: Request) -> int:
    """Caption. Returns 0 if no row of the run failed, 3 if some did, 130 after Ctrl-C."""
    use_pyarrow_for_s3()
    settings = _settings(request)
    with RunDirectory(request.out).locked() as directory, progress_for(as_json=request.as_json) as progress:
        try:
            manifest = _prepare(directory, request)
            if _select(directory, manifest, request, progress):
                try:
                    with _explain(), _followed(directory, progress):
                        _caption(directory, manifest, settings, request)
                finally:
                    directory.settle()
            directory.compact()
            with directory.index() as index:
                return EXIT_SOME_FAILED if set(index.counts()) - {JobStatus.COMPLETED} else 0
        except KeyboardInterrupt:
            progress.note("interrupted; the same command continues")
            return EXIT_INTERRUPTED
        except pa.ArrowException as error:
            raise CommandFailed(f"cannot use {request.out}: {error}") from error
        except OSError as error:
            raise CommandFailed(f"cannot use {request.out}: {error.strerror or error}") from error


def _settings(request: Request) -> Settings:
    """Return the settings of the engines. If they run on this machine, the model must exist. Raises CommandFailed."""
    try:
        settings = Settings(model=_model(request.model)) if request.model else Settings()
        if request.address == LOCAL:
            check_model(settings.model)
    except ValidationError as error:
        raise CommandFailed(_first_line(error)) from None
    except CannotWork as error:
        raise CommandFailed(str(error)) from None
    return settings


def _model(name: str) -> str:
    """Return the name of a model, with an absolute path if it is a directory: actors have another current directory."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _prepare(directory: RunDirectory, request: Request) -> Manifest:
    """Bring the directory into order and update its manifest. Raises StoreError if the request does not fit it."""
    manifest, inputs = directory.manifest(), absolute(request.inputs)
    directory.settle()
    empty = not directory.part_numbers()
    set_options(manifest, request.options, redo=request.redo, out=request.out, empty=empty)
    set_inputs(manifest, inputs, empty=empty)
    if not manifest.inputs or (STDIN in manifest.inputs and not inputs):
        raise CommandFailed("name the videos to caption: sharecap ray INPUT… --out OUT")
    manifest.root = str(choose_root(manifest, request.root))
    manifest.columns = (request.video_column, request.id_column) if inputs else manifest.columns
    _job_options(manifest)
    directory.save(manifest)
    return manifest


def _job_options(manifest: Manifest) -> VideoOptions:
    if "webhook_url" in manifest.options:
        raise CommandFailed("--webhook-url needs a service: `sharecap batch` takes it")
    try:
        return VideoOptions(**manifest.options)
    except ValidationError as error:
        raise CommandFailed(_first_line(error)) from None


def _select(directory: RunDirectory, manifest: Manifest, request: Request, progress: Progress) -> int:
    """Write the videos that must be captioned for Ray, and return their number."""
    failed = Failed.RETRY if request.retry_failed else Failed.KEEP
    with directory.index() as index:
        count = directory.write_input(_clips(manifest, Selection(index, manifest.caption_options, failed), progress))
    progress.counted(count + progress.totals.skipped)
    return count


def _clips(manifest: Manifest, selection: Selection, progress: Progress) -> Iterator[Clip]:
    video_column, id_column = manifest.columns
    for item in Inputs(manifest.inputs, Path(manifest.root or "."), Columns(video_column, id_column)):
        task = selection.task(item)
        if task is None:
            progress.skipped()
        else:
            yield Clip(item.id, item.video, task.attempt)


def _caption(directory: RunDirectory, manifest: Manifest, settings: Settings, request: Request) -> None:
    start_ray(request.address, request.gpus)
    try:
        arguments = {
            "settings": settings.model_dump(exclude_unset=True, exclude=set(NOT_PASSED_ON)),
            "options": _job_options(manifest),
            "stored_options": manifest.caption_options,
        }
        caption_dataset(directory, settings, request.gpus, arguments)
    finally:
        ray.shutdown()


@contextmanager
def _explain() -> Iterator[None]:
    try:
        yield
    except RayError as error:
        raise CommandFailed(
            f"Ray could not caption: {_reason(error)}. What is finished is kept; the same command continues"
        ) from error


@contextmanager
def _followed(directory: RunDirectory, progress: Progress) -> Iterator[None]:
    """Show rows as Ray writes them, until the end of the context."""
    seen: set[str] = set()
    end = threading.Event()

    def show() -> None:
        with suppress(OSError, pa.ArrowException):
            for row in directory.finished(seen):
                progress.row(row)

    def follow() -> None:
        while not end.wait(PROGRESS_EVERY_S):
            show()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
        show()


def _reason(error: RayError) -> str:
    """Return the line that names the cause: Ray puts stack traces of other processes into messages."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    causes = [line for line in lines if CAUSE.match(line)]
    return (causes or lines)[-1].strip()


def _first_line(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
