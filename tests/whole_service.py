"""The whole service as users start it: `sharecap up` with the demo model."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from httpx_sse import connect_sse

from service.local.up import free_port

JOB_TIMEOUT_S = 240


@dataclass(frozen=True)
class Service:
    process: psutil.Popen
    data_dir: Path
    http: httpx.Client

    def submit(self, clip: Path, **options: object) -> str:
        with clip.open("rb") as file:
            answer = self.http.post("/captions", files={"file": (clip.name, file)}, data=options)
        assert answer.status_code == 202, answer.text
        assert answer.headers["location"] == f"/captions/{answer.json()['id']}"
        return str(answer.json()["id"])

    def events(self, job_id: str, after: int | None = None) -> list[tuple[int, str, dict[str, Any]]]:
        """Follow the job to its final event; return the id, type and data of each event."""
        headers = {} if after is None else {"Last-Event-ID": str(after)}
        with connect_sse(self.http, "GET", f"/captions/{job_id}/events", headers=headers) as source:
            return [(int(e.id), e.event, json.loads(e.data)) for e in source.iter_sse() if e.data]

    def job(self, job_id: str) -> dict[str, Any]:
        job: dict[str, Any] = self.http.get(f"/captions/{job_id}").raise_for_status().json()
        return job


@contextmanager
def whole_service(data_dir: Path) -> Iterator[Service]:
    """Run `sharecap up` with this data directory until the block ends. Fails if it leaves a process running."""
    port = free_port()
    command = [sys.executable, "-m", "sharecap_client.cli", "up", "--port", str(port), "--data-dir", str(data_dir)]
    process = psutil.Popen(command, stderr=subprocess.PIPE, text=True, umask=0o022)
    try:
        line = process.stderr.readline()
        assert f"sharecap is ready on http://127.0.0.1:{port} with the demo model" in line, line
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=JOB_TIMEOUT_S) as http:
            yield Service(process, data_dir, http)
        children = process.children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert not psutil.wait_procs(children, timeout=5)[1], "a process is still running"
    finally:
        if process.is_running():
            process.kill()
        process.stderr.close()
