"""Where files lie: nothing that Redis says leads out of the data directory."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.contract.jobs import JobKind, RecaptionOptions, Record, new_job_id
from service.contract.storage.local import keyframe_path, keyframes_dir, upload_path

DATA = Path("/data")


@pytest.mark.parametrize("name", ["..", ".", "../x", "/etc/passwd", "cap_1/../../x", "a/b"])
def test_no_id_leads_elsewhere(name: str) -> None:
    for path_of in (upload_path, keyframes_dir, lambda data, job_id: keyframe_path(data, job_id, 0)):
        with pytest.raises(ValueError, match="is not a job id"):
            path_of(DATA, name)
    with pytest.raises(ValidationError):
        Record(id=name, kind=JobKind.RECAPTION, options=RecaptionOptions(prompt="x"), created_at=datetime.now(UTC))


def test_an_id_names_its_files() -> None:
    job_id = new_job_id()
    assert upload_path(DATA, job_id) == DATA / "uploads" / job_id
    assert keyframe_path(DATA, job_id, 3) == DATA / "keyframes" / job_id / "3.jpg"
