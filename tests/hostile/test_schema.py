"""Requests made from the OpenAPI document, by its rules and against them: none meets a fault of the gateway's own.

Half of them name a job that is there. A scripted worker does all jobs, and fetches nothing. `SOAK=1`: 33 times as many.
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
from service.contract.store.store import CancelRequested, Fenced
from tests.service.scripted import ScriptedWorker, Serve, Served, recaption_events, video_events

EXAMPLES = 400 if os.environ.get("SOAK") == "1" else 12
"""For each operation, at most."""
TOLD = {"url_unreachable", "no_worker", "queue_unavailable", "storage_full"}
"""What may be answered with 500 or more."""
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
"""JSON that generators do not think of, for any path that takes JSON."""
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


async def do_all_jobs(worker: ScriptedWorker) -> None:
    """Do each job as it comes; one that was cancelled or removed meanwhile is let go."""
    while True:
        lease = await worker.store.claim(await worker.oldest_queued())
        if lease is None:
            await asyncio.sleep(0.01)
            continue
        worker.places[lease.job_id] = 1
        found = await worker.store.kind_and_status(lease.job_id)
        script = recaption_events if found and found[0] is JobKind.RECAPTION else video_events
        with suppress(Fenced, CancelRequested):
            await worker.append(lease, *script(lease.job_id))


async def job_to_name(gateway: Served, worker: ScriptedWorker, clip: Path) -> str:
    """Return the id of a video's job that has ended; see that the worker counts as alive."""
    await worker.show_card()
    answer = await gateway.client.post(
        "/captions", files={"file": ("a.mp4", clip.read_bytes())}, headers={"Prefer": "wait=30"}
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def ask_all(url: str, document: dict[str, Any], operation: str, job_id: str, clip: bytes) -> Counter[int]:
    """Send generated requests of one operation; return how often which status came back."""
    method, path = operation.split(" ")
    asked = schemathesis.openapi.from_dict(document)[path][method]
    told = Counter[int]()

    def ask(case: Case) -> None:
        if case.media_type == "multipart/form-data" and isinstance(case.body, dict) and len(told) % 2:
            case.body["file"] = clip
        with suppress(requests.exceptions.InvalidHeader, requests.exceptions.InvalidURL):
            answer = case.call(base_url=url, timeout=30)
            told[answer.status_code] += 1
            assert answer.status_code < 500 or answer.json()["code"] in TOLD, (case.as_curl_command(), answer.text)

    for mode in GenerationMode:
        for named in ({}, {"path_parameters": {"job_id": job_id}}) if "{job_id}" in path else ({},):
            nothing_to_break = suppress(Unsatisfiable) if mode is GenerationMode.NEGATIVE else nullcontext()
            with nothing_to_break:
                GENERATED(given(case=asked.as_strategy(generation_mode=mode, **named))(ask))()
    return told


@pytest.mark.timeout(3600)
async def test_no_request_of_the_document_meets_a_fault(serve: Serve, worker: ScriptedWorker, clip: Path) -> None:
    async with serve(heartbeat_s=0.2, webhook_secret="whsec_" + "a" * 32) as gateway:
        doing = asyncio.create_task(do_all_jobs(worker))
        document = gateway.app.openapi()
        told = Counter[int]()
        for path, methods in document["paths"].items():
            for method in methods:
                job_id = await job_to_name(gateway, worker, clip)
                operation = f"{method.upper()} {path}"
                told += await asyncio.to_thread(ask_all, gateway.url, document, operation, job_id, clip.read_bytes())
        assert not doing.done(), doing
        doing.cancel()
    print(f"\n{told.total()} generated requests: {dict(sorted(told.items()))}")
    assert told[200] and told[204] and told[404] and told[422]


async def test_what_generators_do_not_think_of(serve: Serve, worker: ScriptedWorker, clip: Path) -> None:
    async with serve(heartbeat_s=0.2, webhook_secret="whsec_" + "a" * 32) as gateway:
        doing = asyncio.create_task(do_all_jobs(worker))
        job = await job_to_name(gateway, worker, clip)
        keyframes_dir(gateway.settings.data_dir, job).mkdir(parents=True)
        answers = [await gateway.client.get(path.format(job=job)) for path in PATHS]
        for place in ("/captions", f"/captions/{job}/clips", "/recaption"):
            for body in BODIES:
                headers = {"Content-Type": "application/json", "Prefer": "wait=1"}
                answers.append(await gateway.client.post(place, content=body.encode(), headers=headers))
        for field in ("\x00", NUMBER, '{"\\ud800": "a"}', '{"a": "\\ud800"}'):
            for name in ("seed", "metadata", field):
                answers.append(await gateway.client.post("/captions", data={name: field}, files={"file": b"a"}))
        doing.cancel()
    faults = [(str(a.request.url)[-80:], a.request.content[:80], a.text) for a in answers if a.status_code >= 500]
    assert not faults
    print(f"\n{len(answers)} odd requests: {dict(sorted(Counter(a.status_code for a in answers).items()))}")
