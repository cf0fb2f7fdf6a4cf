"""Requests generated from the OpenAPI document, valid and invalid: none causes an internal error in the gateway.

Half of them name an existing job. A scripted worker processes all jobs without fetching anything. `SOAK=1` generates
33 times as many requests.
"""

import asyncio
import os
from collections import Counter
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.generation.case import Case

from service.contract.jobs import JobKind
from service.contract.storage.local import keyframes_dir
from service.contract.store.leases import CancelRequested, Fenced
from tests.service.scripted import ScriptedWorker, Serve, Served, recaption_events, video_events

EXAMPLES = 400 if os.environ.get("SOAK") == "1" else 12
"""The most examples per operation."""
ALLOWED_5XX = {"url_unreachable", "no_worker", "queue_unavailable", "storage_full"}
"""Error codes that a response with status 500 or above may have."""
NUMBER = "9" * 5000
BODIES = (
    '{"\\ud800": 1}',
    '{"\\ud800": 1, "\\ud800": 2}',
    '{"prompt": "\\ud800"}',
    '{"prompt": "a", "metadata": {"\\ud800": "a"}}',
    '{"prompt": "a", "metadata": {"\\ud800": 1}}',
    '{"prompt": "a", "webhook_url": "http://\\ud800"}',
    f'{{"prompt": "a", "seed": {NUMBER}}}',
    '{"prompt": "a", "temperature": NaN}',
    '{"prompt": "a", "deadline_s": 1e-300}',
    "[" * 100_000,
    "\\x00",
)
"""JSON bodies that the generators do not produce, for every path that accepts JSON."""
PATHS = (
    "/captions/{job}/keyframes/" + NUMBER + ".jpg",
    "/captions/{job}/keyframes/" + "9" * 300 + ".jpg",
    "/captions/{job}/keyframes/%D9%A3.jpg",
    "/captions/{job}%00",
    "/captions/%FF%FE",
    "/captions?limit=" + NUMBER,
    "/captions?cursor=" + NUMBER + "-a",
    "/captions?cursor=1-%00%FF",
    "/captions?status=%ED%A0%80",
    "/captions/{job}/events?after=" + NUMBER,
    "/captions/{job}/events?after=" + "9" * 18,
    "/captions/{job}/events?after=%D9%A3",
    "/web/%00",
    "/web/" + "a" * 5000,
    "/web/..%2f..%2fsettings.py",
    "/%FF",
)
GENERATED = settings(
    database=None,
    deadline=None,
    derandomize=True,
    max_examples=max(1, EXAMPLES // 4),
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


async def process_all_jobs(worker: ScriptedWorker) -> None:
    """Process each queued job; drop a job that is cancelled or deleted meanwhile."""
    while True:
        lease = await worker.store.claim(await worker.oldest_queued())
        if lease is None:
            await asyncio.sleep(0.01)
            continue
        worker.positions[lease.job_id] = 1
        known = await worker.store.kind_and_status(lease.job_id)
        script = recaption_events if known and known.kind is JobKind.RECAPTION else video_events
        with suppress(Fenced, CancelRequested):
            await worker.append(lease, *script(lease.job_id))


async def completed_job(gateway: Served, worker: ScriptedWorker, clip: Path) -> str:
    """Register the worker as alive, caption a video, and return the id of the completed job."""
    await worker.show_card()
    answer = await gateway.client.post(
        "/captions", files={"file": ("a.mp4", clip.read_bytes())}, headers={"Prefer": "wait=30"}
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def send_all(url: str, document: dict[str, Any], operation: str, job_id: str, clip: bytes) -> Counter[int]:
    """Send generated requests for one operation; return the number of responses by status."""
    method, path = operation.split(" ")
    schema = schemathesis.openapi.from_dict(document)[path][method]
    responses = Counter[int]()

    def send(case: Case) -> None:
        if case.media_type == "multipart/form-data" and isinstance(case.body, dict) and len(responses) % 2:
            case.body["file"] = clip
        with suppress(requests.exceptions.InvalidHeader, requests.exceptions.InvalidURL):
            answer = case.call(base_url=url, timeout=30)
            responses[answer.status_code] += 1
            assert answer.status_code < 500 or answer.json()["code"] in ALLOWED_5XX, (
                case.as_curl_command(),
                answer.text,
            )

    for mode in GenerationMode:
        for named in ({}, {"path_parameters": {"job_id": job_id}}) if "{job_id}" in path else ({},):
            # an operation without constraints has no invalid requests
            expected = suppress(Unsatisfiable) if mode is GenerationMode.NEGATIVE else nullcontext()
            with expected:
                GENERATED(given(case=schema.as_strategy(generation_mode=mode, **named))(send))()
    return responses


@pytest.mark.timeout(3600)
async def test_generated_requests_cause_no_internal_error(serve: Serve, worker: ScriptedWorker, clip: Path) -> None:
    async with serve(heartbeat_s=0.2, webhook_secret="whsec_" + "a" * 32) as gateway:
        processing = asyncio.create_task(process_all_jobs(worker))
        document = gateway.app.openapi()
        responses = Counter[int]()
        for path, methods in document["paths"].items():
            for method in methods:
                job_id = await completed_job(gateway, worker, clip)
                operation = f"{method.upper()} {path}"
                clip_bytes = clip.read_bytes()
                responses += await asyncio.to_thread(send_all, gateway.url, document, operation, job_id, clip_bytes)
        assert not processing.done(), processing
        processing.cancel()
    print(f"\n{responses.total()} generated requests: {dict(sorted(responses.items()))}")
    assert responses[200] and responses[204] and responses[404] and responses[422]


async def test_handwritten_odd_requests_cause_no_internal_error(
    serve: Serve, worker: ScriptedWorker, clip: Path
) -> None:
    async with serve(heartbeat_s=0.2, webhook_secret="whsec_" + "a" * 32) as gateway:
        processing = asyncio.create_task(process_all_jobs(worker))
        job = await completed_job(gateway, worker, clip)
        keyframes_dir(gateway.settings.data_dir, job).mkdir(parents=True)
        answers = [await gateway.client.get(path.format(job=job)) for path in PATHS]
        for path in ("/captions", f"/captions/{job}/clips", "/recaption"):
            for body in BODIES:
                headers = {"Content-Type": "application/json", "Prefer": "wait=1"}
                answers.append(await gateway.client.post(path, content=body.encode(), headers=headers))
        for field in ("\x00", NUMBER, '{"\\ud800": "a"}', '{"a": "\\ud800"}'):
            for name in ("seed", "metadata", field):
                answers.append(await gateway.client.post("/captions", data={name: field}, files={"file": b"a"}))
        processing.cancel()
    errors = [(str(a.request.url)[-80:], a.request.content[:80], a.text) for a in answers if a.status_code >= 500]
    assert not errors
    print(f"\n{len(answers)} odd requests: {dict(sorted(Counter(a.status_code for a in answers).items()))}")
