"""Jobs as text, JSON, SRT, WebVTT, Markdown and CSV: times, and texts that could break the format."""

import csv
import io
import json
import re
from typing import Any

import pytest
from sharecap_client.formats import FORMATS, clock, csv_text, name_of, parts, render
from sharecap_client.models import Job

HOSTILE = "two\n\nlines\x1b[2J <b>bold</b> --> [x](y) & | end"


def job(**changes: Any) -> Job:
    texts = [(0.0, "A red star."), (2.0, "It moves."), (7.9, "It leaves.")]
    values = {
        "id": "cap_1",
        "kind": "video",
        "status": "completed",
        "source": {"filename": "clip.mp4", "duration_s": 8.0},
        "differentials": [{"keyframe": i, "time_s": t, "text": text} for i, (t, text) in enumerate(texts)],
        "caption": "A red star moves and leaves.",
        "created_at": 0,
        "links": {"self": "", "events": ""},
    }
    return Job.model_validate({**values, **changes})


def test_a_text_is_in_force_until_the_next_keyframe() -> None:
    assert [(part.start_s, part.end_s) for part in parts(job())] == [(0, 2), (2, 7.9), (7.9, 8.9)]
    unknown = job(source={"filename": "clip.mp4"})
    assert parts(unknown)[-1].end_s == pytest.approx(12.9)
    part_of_video = job(options={"start_s": 0, "end_s": 9.5}, source={"duration_s": 60})
    assert parts(part_of_video)[-1].end_s == 9.5


def test_a_job_without_differentials_is_one_part() -> None:
    clip = job(kind="clip", source=None, parent="cap_0", differentials=[], options={"start_s": 1.5, "end_s": 4})
    assert [(part.start_s, part.end_s, part.keyframe) for part in parts(clip)] == [(1.5, 4, None)]
    assert name_of(clip) == "cap_0 (0:01.500–0:04.000)"


def test_srt() -> None:
    assert render(job(), "srt").startswith(
        "1\n00:00:00,000 --> 00:00:02,000\nA red star.\n\n2\n00:00:02,000 --> 00:00:07,900\nIt moves.\n\n"
    )


def test_vtt() -> None:
    assert render(job(), "vtt").startswith("WEBVTT\n\n00:00:00.000 --> 00:00:02.000\nA red star.\n\n00:00:02.000")


def test_text_markdown_and_json() -> None:
    assert render(job(), "txt").splitlines() == [
        "    0.00 s  A red star.",
        "    2.00 s  It moves.",
        "    7.90 s  It leaves.",
        "",
        "A red star moves and leaves.",
    ]
    assert render(job(), "md") == (
        "# clip.mp4\n\nA red star moves and leaves.\n\n"
        "- **0:00.000** A red star.\n- **0:02.000** It moves.\n- **0:07.900** It leaves.\n"
    )
    assert Job.model_validate_json(render(job(), "json")) == job()


def test_csv_has_a_row_for_each_text_and_one_for_the_caption() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text([job(), job(id="cap_2")]))))
    assert [row["job"] for row in rows] == ["cap_1"] * 4 + ["cap_2"] * 4
    assert [row["keyframe"] for row in rows[:4]] == ["0", "1", "2", ""]
    assert (rows[3]["start_s"], rows[3]["end_s"], rows[3]["text"]) == ("0.000", "8.000", "A red star moves and leaves.")


@pytest.mark.parametrize("output", FORMATS)
def test_hostile_texts_do_not_break_a_format(output: Any) -> None:
    text = render(job(differentials=[{"keyframe": 0, "time_s": 0, "text": HOSTILE}], caption=HOSTILE), output)
    match output:
        case "srt" | "vtt":
            assert len(re.findall("-->", text)) == 1
            assert "\x1b" not in text and "\n\nlines" not in text
            assert output == "srt" or "&lt;b&gt;" in text
        case "md":
            assert "<b>" not in text.replace("\\<b", "") and "[x](" not in text.replace("\\[x\\](", "")
        case "json":
            assert json.loads(text)["caption"] == HOSTILE
        case "csv":
            assert [row["text"] for row in csv.DictReader(io.StringIO(text))] == [HOSTILE, HOSTILE]


def test_a_recaption_has_no_times() -> None:
    recaption = job(kind="recaption", source=None, differentials=[], options={"prompt": "a fox"}, caption="A red fox.")
    assert render(recaption, "txt") == "A red fox.\n"
    assert name_of(recaption) == "a fox"
    with pytest.raises(ValueError, match="no times"):
        render(recaption, "srt")


def test_an_unfinished_job_has_no_parts() -> None:
    queued = job(status="queued", source=None, differentials=[], caption=None)
    assert parts(queued) == [] and render(queued, "txt") == "" and render(queued, "vtt") == "WEBVTT\n"


def test_clock() -> None:
    assert [clock(s) for s in (0, 59.9996, 62.5, 3723.25)] == ["0:00.000", "1:00.000", "1:02.500", "1:02:03.250"]
