"""Presentation: paths are added to stored facts, and the same stored event always gives the same text."""

import json
from datetime import UTC, datetime

from service.contract.events import Delta, Keyframes, StoredEvent, fold
from service.contract.jobs import JobKind, JobStatus, Keyframe, Record, Source, VideoOptions, new_job_id
from service.contract.store.entries import event_json
from service.presentation import present_event_data, present_job, present_summary, title_of

JOB_ID = new_job_id()
IMAGE = f"/captions/{JOB_ID}/keyframes/3.jpg"
EVENT = Keyframes(keyframes=[Keyframe(index=3, time_s=6.0, shot=1)], complete=True)
PRESENTED = f'{{"keyframes":[{{"index":3,"time_s":6.0,"image":"{IMAGE}","shot":1}}],"complete":true}}'


def a_record() -> Record:
    return Record(id=JOB_ID, kind=JobKind.VIDEO, options=VideoOptions(), created_at=datetime.now(UTC))


def test_a_stored_keyframes_event_contains_no_url_and_is_presented_with_images() -> None:
    stored = event_json(EVENT)
    assert "image" not in stored and JOB_ID not in stored
    assert present_event_data(JOB_ID, "keyframes", stored) == PRESENTED
    assert present_event_data(JOB_ID, "keyframes", stored) == PRESENTED


def test_an_event_stored_with_an_image_by_an_older_version_is_presented_unchanged() -> None:
    assert present_event_data(JOB_ID, "keyframes", PRESENTED) == PRESENTED
    keyframes = Keyframes.model_validate(json.loads(PRESENTED))
    assert keyframes == EVENT


def test_other_events_are_presented_as_stored() -> None:
    stored = event_json(Delta(of="caption", text="正方形 🟨"))
    assert present_event_data(JOB_ID, "delta", stored) == stored


def test_a_job_is_presented_with_links_and_images() -> None:
    state = fold(a_record(), [StoredEvent(seq=1, at=datetime.now(UTC), event=EVENT)])
    job = json.loads(present_job(state).model_dump_json())
    assert job["links"] == {"self": f"/captions/{JOB_ID}", "events": f"/captions/{JOB_ID}/events"}
    assert [list(keyframe.items()) for keyframe in job["keyframes"]] == [
        [("index", 3), ("time_s", 6.0), ("image", IMAGE), ("shot", 1)]
    ]
    names = list(job)
    assert names[0] == "id" and names[-1] == "links"


def test_a_summary_has_no_results() -> None:
    summary = present_summary(a_record(), JobStatus.QUEUED)
    assert (summary.id, summary.status, summary.links.self) == (JOB_ID, "queued", f"/captions/{JOB_ID}")
    assert "keyframes" not in summary.model_dump()


def test_a_part_of_any_length_has_a_title() -> None:
    part = VideoOptions(start_s=62.5, end_s=4.9e306)
    assert title_of(part, Source(filename="a.mp4")) == "a.mp4, 1:02.50 to 999:00:00.00"
