"""A data set with everything that breaks careless exports: hostile captions and names, subfolders, failed clips."""

from pathlib import Path
from typing import Any

import pytest
from sharecap_client.datasets.rows import Row
from sharecap_client.datasets.store import Store

HOSTILE = 'Line one,\nline "two"; naïve 星 🌟\u2028third\tline\x00 [x](y), <b>\r\nend'
ONE_LINE = 'Line one, line "two"; naïve 星 🌟 third line [x](y), <b> end'

IDS = ("plain.mp4", 'a folder/ünï cödé 星, "q".mp4', "a folder/plain.mp4", "deep/er/x.y.mp4", "twin.mp4", "twin.mov")
FAILED = "broken.mp4"
EXCLUDED = "same.mp4"


def row(root: Path, row_id: str, **changes: Any) -> Row:
    """Return a captioned row; its video is a file with the id as content, which tells videos apart."""
    video = root / row_id
    video.parent.mkdir(parents=True, exist_ok=True)
    video.write_text(row_id)
    texts = [(0.0, "A red star."), (2.0, "It moves\nright.")]
    values = {
        "id": row_id,
        "video": str(video),
        "state": "completed",
        "caption": f"Caption of {row_id}.",
        "differentials": [{"keyframe": n, "time_s": t, "text": text} for n, (t, text) in enumerate(texts)],
        "keyframe_times_s": [0.0, 2.0],
        **{"width": 640, "height": 360, "fps": 25.0, "frames": 100, "duration_s": 4.0},
    }
    return Row.model_validate({**values, **changes})


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """The folder of the videos."""
    return tmp_path / "clips"


@pytest.fixture
def rows(videos: Path) -> list[Row]:
    error = {"code": "decode_failed", "detail": "not a video", "retryable": False}
    return [
        *(row(videos, row_id) for row_id in IDS),
        row(videos, "hostile.mp4", caption=HOSTILE),
        row(videos, "edited.mp4", edited="TRIGGER, an edited caption."),
        row(videos, FAILED, state="failed", caption=None, differentials=[], error=error),
        row(videos, EXCLUDED, excluded="same as plain.mp4"),
        row(videos, "empty.mp4", caption=" \n"),
    ]


@pytest.fixture
def store(tmp_path: Path, rows: list[Row]) -> Store:
    """A store with these rows in two parts."""
    made = Store.create(tmp_path / "run", {"mode": "sliding"}, ["clips"])
    made.append(rows[:4])
    made.append(rows[4:])
    return made
