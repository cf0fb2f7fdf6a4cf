"""The pipeline in a script: a scripted model, no Redis and no service."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.contract.errors import NotAVideo, NotFound
from service.contract.events import Keyframes, Started, Video
from service.contract.jobs import ClipOptions, JobKind, JobStatus, RecaptionOptions, Record, VideoOptions, new_job_id
from tests.fake_captioner import FakeCaptioner, FakeEncoder
from tests.workers.clips import numbered, write
from workers.attempt import Attempt, WorkerContext
from workers.publisher import MemorySink
from workers.standalone import caption_file, run_job, standalone_context


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write(tmp_path / "clip.mp4", [numbered(k) for k in range(80)], fps=10)


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WorkerContext:
    """A context that fails if anything connects to Redis."""
    monkeypatch.setattr("redis.asyncio.connection.AbstractConnection.connect", None)
    return standalone_context(tmp_path / "data", FakeCaptioner(), FakeEncoder())


async def test_sliding_mode_captions_a_file(context: WorkerContext, clip: Path, tmp_path: Path) -> None:
    sink = MemorySink()
    job = await caption_file(clip, context, VideoOptions(keyframes="interval"), sink)
    assert job.status is JobStatus.COMPLETED
    assert [k.time_s for k in job.keyframes] == [0, 2, 4, 6, 7.9]
    assert [d.text for d in job.differentials] == [f"answer {k}" for k in (1, 2, 3, 4, 5)]
    assert job.caption == "answer 6"
    assert [stored.seq for stored in sink.stored] == list(range(1, len(sink.stored) + 1))
    assert sink.stored[-1].last
    assert clip.exists(), "the pipeline deletes its own copy"
    assert len(list((tmp_path / "data").rglob("*.jpg"))) == 5
    assert not list((tmp_path / "data" / "uploads").iterdir())


async def test_fast_mode_captions_a_file(context: WorkerContext, clip: Path) -> None:
    job = await caption_file(clip, context, VideoOptions(mode="fast", keyframes="interval"))
    assert (job.caption, job.keyframes_seen) == ("answer 1", 5)
    assert job.model == context.settings.public_model


async def test_a_file_that_is_not_a_video_raises(context: WorkerContext, tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("not a video" * 100)
    sink = MemorySink()
    with pytest.raises(NotAVideo):
        await caption_file(text, context, sink=sink)
    assert [stored.event.type for stored in sink.stored] == ["started"]
    assert not list((tmp_path / "data" / "uploads").iterdir())


async def test_a_second_attempt_continues_from_the_events_of_the_first(context: WorkerContext, clip: Path) -> None:
    sink = MemorySink()
    options = VideoOptions(keyframes="interval")
    complete = await caption_file(clip, context, options, sink)
    captions = [stored for stored in sink.stored if stored.event.type == "differential"]
    sink.stored = [s for s in sink.stored if isinstance(s.event, Started | Video | Keyframes)] + captions[:3]
    record = Record(id=complete.id, kind=JobKind.VIDEO, options=options, created_at=complete.created_at)
    job = await run_job(Attempt.resume(context, record, sink.stored, sink, epoch=2), sink)
    assert (job.status, job.attempts) == (JobStatus.COMPLETED, 2)
    assert [d.text for d in job.differentials] == [f"answer {k}" for k in (1, 2, 3, 7, 8)]


def text_record(options: RecaptionOptions | ClipOptions, kind: JobKind) -> Record:
    return Record(id=new_job_id(), kind=kind, options=options, created_at=datetime.now(UTC))


async def test_a_prompt_is_expanded(context: WorkerContext) -> None:
    sink = MemorySink()
    record = text_record(RecaptionOptions(prompt="a cat"), JobKind.RECAPTION)
    job = await run_job(Attempt.resume(context, record, [], sink), sink)
    assert (job.status, job.caption) == (JobStatus.COMPLETED, "answer 1")


async def test_a_clip_needs_its_parent_job(context: WorkerContext) -> None:
    sink = MemorySink()
    record = text_record(ClipOptions(start_s=0, end_s=1), JobKind.CLIP)
    with pytest.raises(NotFound):
        await run_job(Attempt.resume(context, record, [], sink), sink)
