"""Captions a table of N rows with a client that answers at once, and prints the largest memory of the process in MB.

    python -m tests.client.datasets.memory 10000 DIRECTORY

The second half of the rows is read after the first half is in the store, as in a run that was interrupted.
"""

import asyncio
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from sharecap_client.api import AsyncClient, AsyncSubmittedJob
from sharecap_client.datasets.batch.inputs import Inputs
from sharecap_client.datasets.batch.progress import Lines
from sharecap_client.datasets.batch.run import Run
from sharecap_client.datasets.batch.selection import Failed, Selection
from sharecap_client.datasets.store import Store
from sharecap_client.models import Job

ROOT = Path(__file__).parents[3]


class InstantClient(AsyncClient):
    """Returns a completed job for every video."""

    async def caption(self, video: Any, **arguments: Any) -> AsyncSubmittedJob:
        now = datetime.now(UTC)
        times = {"created_at": now, "started_at": now, "finished_at": now}
        links = {"self": "/captions/cap_1", "events": "/captions/cap_1/events"}
        job = {"id": "cap_1", "kind": "video", "status": "completed", "caption": "A red star.", "links": links, **times}
        return AsyncSubmittedJob(self, Job.model_validate(job))


async def caption(store: Store, table: Path) -> None:
    with store.index() as index, Lines(Console(quiet=True)) as progress:
        selection = Selection(index, store.manifest.caption_options, Failed.KEEP)
        run = Run(InstantClient(), store, selection, progress, 64)
        await run.caption(Inputs([str(table)], table.parent), count=True)


def peak_mb(rows: int, directory: Path) -> float:
    """Run this module in its own process and return what it prints."""
    directory.mkdir()
    command = [sys.executable, "-m", __name__, str(rows), str(directory)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)


def main() -> None:
    rows, directory = int(sys.argv[1]), Path(sys.argv[2])
    store = Store.create(directory / "run")
    table = directory / "table.jsonl"
    for end in (rows // 2, rows):
        with table.open("w") as file:
            for number in range(end):
                file.write(json.dumps({"video": f"https://example.org/a/folder/with/videos/{number:07}.mp4"}) + "\n")
        asyncio.run(caption(store, table))
    assert sum(map(store.parts.rows_in, store.parts.numbers())) == rows
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(lines["VmHWM"].split()[0]) / 1024)


if __name__ == "__main__":
    main()
