"""Runs the pipeline in a script, without Redis and without the service: a video file goes in, a finished job comes out.

The model and the data directory are the same as in a worker. Events go to a `MemorySink`.
"""

from datetime import UTC, datetime
from pathlib import Path

from service.contract.events import fold
from service.contract.jobs import JobKind, JobState, Record, Source, VideoOptions, new_job_id
from service.contract.storage.backends import open_storage
from workers import pipeline
from workers.attempt import Attempt, WorkerContext
from workers.models.engine import Captioner, FrameEncoder
from workers.publisher import MemorySink
from workers.settings import Settings
from workers.video.decoders import Decoders


def standalone_context(data_dir: Path, captioner: Captioner, encoder: FrameEncoder) -> WorkerContext:
    """Return a context whose jobs keep their keyframes in `data_dir`. Other settings come from the environment."""
    settings = Settings(data_dir=data_dir)
    return WorkerContext(settings, open_storage(settings), captioner, encoder, Decoders(settings.decoders))


async def caption_file(
    video: Path, context: WorkerContext, options: VideoOptions | None = None, sink: MemorySink | None = None
) -> JobState:
    """Caption a copy of the file `video` and return the job. Raises SharecapError if that fails.

    Pass a `sink` to look at the events, also while the job runs or after it has failed.
    """
    record = new_record(Source(filename=video.name), options or VideoOptions())
    sink = sink or MemorySink()
    attempt = Attempt.resume(context, record, [], sink)
    try:
        await context.storage.store_copy(record.id, video)
        return await run_job(attempt, sink)
    finally:
        await attempt.delete_upload()


def new_record(source: Source, options: VideoOptions) -> Record:
    """Return the record of a new job that captions a video."""
    return Record(id=new_job_id(), kind=JobKind.VIDEO, options=options, source=source, created_at=datetime.now(UTC))


async def run_job(attempt: Attempt, sink: MemorySink) -> JobState:
    """Run an attempt that writes to `sink` and return the job. Raises SharecapError if that fails."""
    await pipeline.run(attempt)
    return fold(attempt.record, sink.stored)
