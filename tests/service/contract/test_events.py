"""Folding events into the state of a job."""

from datetime import UTC, datetime

from service.contract.errors import DecodeFailed
from service.contract.events import (
    Caption,
    Completed,
    Delta,
    Differential,
    Failed,
    Keyframes,
    Queued,
    Started,
    StoredEvent,
    Video,
    fold,
)
from service.contract.jobs import JobKind, JobStatus, Keyframe, RecaptionOptions, Record, Timings, Usage
from tests.service.contract.store.sample_jobs import new_record


def at(second: int) -> datetime:
    return datetime(2030, 1, 1, 0, 0, second, tzinfo=UTC)


def test_fold_of_a_job_with_two_attempts() -> None:
    first = Keyframe(index=0, time_s=0.0)
    second = Keyframe(index=1, time_s=2.0)
    events = [
        Queued(),
        Started(attempt=1),
        Video(duration_s=3.0, width=160, height=120, fps=10.0, interval_s=2.0),
        Keyframes(keyframes=[first], complete=False),
        Keyframes(keyframes=[second], complete=True),
        Delta(of="differential", keyframe=0, text="A"),
        Differential(keyframe=0, time_s=0.0, text="A square."),
        Started(attempt=2),
        Differential(keyframe=1, time_s=2.0, text="It moves."),
        Caption(text="A square moves.", keyframes_seen=2),
        Completed(usage=Usage(prompt_tokens=5), timings_s=Timings(queued=1.5)),
    ]
    record = new_record()
    job = fold(record, [StoredEvent(seq=n, at=at(n), event=event) for n, event in enumerate(events, 1)])
    assert (job.status, job.attempts, job.started_at, job.finished_at) == (JobStatus.COMPLETED, 2, at(2), at(11))
    assert job.source and (job.source.duration_s, job.source.width, job.source.filename) == (3.0, 160, "a.mp4")
    assert [keyframe.index for keyframe in job.keyframes] == [0, 1]
    assert [differential.text for differential in job.differentials] == ["A square.", "It moves."]
    assert (job.caption, job.keyframes_seen, job.interval_s) == ("A square moves.", 2, 2.0)
    assert job.usage == Usage(prompt_tokens=5) and job.timings_s == Timings(queued=1.5)
    assert record.source and record.source.duration_s is None, "the record itself is unchanged"


def test_fold_of_queued_and_failed_jobs() -> None:
    queued = StoredEvent(seq=1, at=at(1), event=Queued())
    failed = StoredEvent(seq=2, at=at(2), event=Failed.of(DecodeFailed("No frame could be decoded.")))
    assert fold(new_record(), [queued]).status is JobStatus.QUEUED
    job = fold(new_record(), [queued, failed])
    assert job.status is JobStatus.FAILED and job.finished_at == at(2)
    assert job.error and (job.error.code, job.error.retryable) == ("decode_failed", False)


def test_a_record_keeps_the_type_of_its_options_in_json() -> None:
    options = RecaptionOptions(prompt="A fox", temperature=0.5)
    record = new_record(kind=JobKind.RECAPTION, options=options, source=None)
    assert Record.model_validate_json(record.model_dump_json()).options == options
