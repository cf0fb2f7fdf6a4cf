"""`sharecap batch --status`: what a store contains, by state and reason."""

import json
from collections import Counter
from dataclasses import dataclass, field

from sharecap_client.datasets.store import Store
from sharecap_client.models import JobStatus


@dataclass
class Status:
    """Numbers of a store. `failures` counts failed rows by error code."""

    rows: int = 0
    completed: int = 0
    failed: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    video_hours: float = 0.0
    completion_tokens: int = 0

    def as_json(self) -> str:
        return json.dumps(vars(self))

    def as_text(self) -> str:
        lines = [
            f"{self.rows:,} rows: {self.completed:,} completed, {self.failed:,} failed",
            *(f"  {count:,} {code}" for code, count in self.failures.most_common()),
            f"{self.video_hours:.2f} hours of video, {self.completion_tokens:,} tokens generated",
        ]
        return "\n".join(lines)


def status_of(store: Store) -> Status:
    """Count the rows of a store."""
    status = Status()
    for row in store.rows(["error", "duration_s", "usage"]):
        status.rows += 1
        if row.state is JobStatus.COMPLETED:
            status.completed += 1
        else:
            status.failed += 1
            status.failures[row.error.code if row.error else row.state.value] += 1
        status.video_hours += (row.duration_s or 0.0) / 3600
        status.completion_tokens += row.usage.completion_tokens if row.usage else 0
    return status
