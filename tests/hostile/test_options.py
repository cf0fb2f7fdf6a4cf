"""Generated options, JSON bodies and event ids: each is accepted or refused with a documented error.

`SOAK=1` runs 40 times as many examples.
"""

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from service.contract.errors import SharecapError
from service.contract.jobs import OPTIONS_OF
from service.presentation import Job
from tests.hostile.test_schema import ALLOWED_5XX, completed_job, process_all_jobs
from tests.service.scripted import ScriptedWorker, Serve

EXAMPLES = 1000 if os.environ.get("SOAK") == "1" else 25
EVENTS = 11
"""How many events the scripted worker's video has."""
GENERATED = settings(
    database=None,
    deadline=None,
    derandomize=True,
    max_examples=EXAMPLES,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
NAMES = sorted({"metadata", "stream", "url", "file", *(n for kind in OPTIONS_OF.values() for n in kind.model_fields)})
NUMERALS = ("", "0", "1", "-1", "8", "1e400", "1e-300", "NaN", "-inf", "0x10", "1_0", "９", "9" * 400)
NAMED = ("true", "null", "sliding", "fast", "semantic", "interval", "{}", '{"a": "b"}', '{"a": 1}', "[" * 3000, "\x00")
ADDRESSES = ("http://169.254.169.254/", "http://[::ffff:127.0.0.1]/", "file:///etc/passwd", "http://a@127.0.0.1:1/")
WORDS = st.sampled_from([*NUMERALS, *NAMED, *ADDRESSES, "\r\nSet-Cookie: a=b"])
TEXTS = WORDS | st.text(max_size=40)
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, 1, 2, 3, 0.1, 2**63 - 1, 2**63, 1e308, 10**400])
LEAVES = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3))
ODD = st.dictionaries(st.sampled_from(NAMES) | TEXTS, VALUES, max_size=3)
ODD_FIELDS = st.lists(st.tuples(st.sampled_from(NAMES) | TEXTS, TEXTS | NUMBERS.map(str)), max_size=3)
COMMON = {
    "max_tokens": st.integers(1, 8192),
    "temperature": st.floats(0, 2),
    "num_beams": st.integers(1, 8),
    "seed": st.integers(0, 2**63 - 1),
    "deadline_s": st.floats(0, 86_400, exclude_min=True),
    "metadata": st.dictionaries(st.text(max_size=64), st.text(max_size=512), max_size=16),
}
OF_VIDEOS = {
    "mode": st.sampled_from(["sliding", "fast"]),
    "keyframes": st.sampled_from(["semantic", "interval"]),
    "interval_s": st.floats(0.1, 60),
    "similarity_threshold": st.floats(-1, 1),
    "cut_threshold": st.floats(-1, 1),
    "max_keyframes": st.integers(1, 2000),
    "start_s": st.floats(0, 2.5),
    "end_s": st.floats(2.6, 1e308),
    "hd_num": st.integers(1, 55),
}
VALID = st.fixed_dictionaries({}, optional=COMMON)
VALID_VIDEO = st.fixed_dictionaries({}, optional=COMMON | OF_VIDEOS)
HEADER = st.binary(max_size=30).map(lambda value: re.sub(rb"[\x00-\x08\x0a-\x1f\x7f]", b"", value).strip())
EVENT_IDS = HEADER | st.integers(-3, 15).map(lambda n: b"%d" % n) | st.integers().map(lambda n: b"%d" % n)


def documented() -> dict[str, int]:
    """Return the HTTP status of each documented error code."""
    kinds = [SharecapError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return {kind.code: kind.status for kind in kinds}


@dataclass
class Target:
    """A gateway with a client and one completed job; `responses` counts the responses by status."""

    http: httpx.Client
    job_id: str
    clip: bytes
    statuses: dict[str, int] = field(default_factory=documented)
    responses: Counter[int] = field(default_factory=Counter)

    def check(self, answer: httpx.Response) -> None:
        """Check that the response is a job, a stream, or a documented error that is not the gateway's fault."""
        self.responses[answer.status_code] += 1
        if answer.status_code in (200, 202) and answer.headers["content-type"] == "application/json":
            Job.model_validate(answer.json())
            return
        if answer.headers["content-type"].startswith("text/event-stream"):
            assert answer.status_code == 200 and answer.content.startswith(b"retry: ")
            return
        problem = answer.json()
        assert answer.headers["content-type"] == "application/problem+json"
        assert problem["status"] == answer.status_code == self.statuses[problem["code"]], problem
        assert answer.status_code < 500 or problem["code"] in ALLOWED_5XX, problem

    def post(self, path: str, **body: Any) -> None:
        headers = {"Prefer": "wait=0", "Content-Type": "application/json"}
        self.check(self.http.post(path, headers=headers if "content" in body else {"Prefer": "wait=0"}, **body))


@pytest.fixture
async def target(serve: Serve, worker: ScriptedWorker, clip: Path) -> AsyncIterator[Target]:
    async with serve(heartbeat_s=0.2, webhook_secret="whsec_" + "a" * 32) as gateway:
        processing = asyncio.create_task(process_all_jobs(worker))
        job_id = await completed_job(gateway, worker, clip)
        with httpx.Client(base_url=gateway.url, timeout=60, trust_env=False) as client:
            target = Target(client, job_id, clip.read_bytes())
            yield target
        print(f"\n{target.responses.total()} requests: {dict(sorted(target.responses.items()))}")
        assert not processing.done(), processing
        processing.cancel()


async def test_form_fields(target: Target) -> None:
    @GENERATED
    @given(VALID_VIDEO, st.just([]) | ODD_FIELDS)
    def send(valid: dict[str, Any], odd: list[tuple[str, str]]) -> None:
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in valid.items()}
        fields = [(name, (None, text.encode(errors="replace"))) for name, text in [*texts.items(), *odd] if name]
        target.post("/captions", files=[*fields, ("file", ("../../a.mp4", target.clip))])

    await asyncio.to_thread(send)
    assert target.responses[202] and target.responses[422]


async def test_json_bodies(target: Target) -> None:
    @GENERATED
    @given(VALID, VALID_VIDEO, st.just({}) | ODD)
    def send(valid: dict[str, Any], valid_video: dict[str, Any], odd: dict[str, Any]) -> None:
        target.post("/captions", content=json.dumps({"url": "http://example.com/", **valid_video, **odd}))
        target.post("/recaption", content=json.dumps({"prompt": "a", **valid, **odd}))
        clip = {"start_s": 0, "end_s": 2.5, **valid, **odd}
        target.post(f"/captions/{target.job_id}/clips", content=json.dumps(clip))

    await asyncio.to_thread(send)
    assert target.responses[202] and target.responses[422]


async def test_last_event_ids(target: Target) -> None:
    path = f"/captions/{target.job_id}/events"

    @GENERATED
    @given(EVENT_IDS)
    def send(event_id: bytes) -> None:
        answer = target.http.get(path, headers=[(b"Last-Event-ID", event_id)])
        valid = re.fullmatch(rb"[0-9]{1,18}", event_id or b"0")  # an empty header counts as missing
        if valid is None:
            target.check(answer)
            assert answer.json()["code"] == "malformed_event_id"
            return
        target.responses[answer.status_code] += 1
        ids = [int(number) for number in re.findall(rb"^id: (\d+)$", answer.content, re.M)]
        assert ids == list(range(int(valid[0]) + 1, EVENTS + 1))
        assert answer.status_code == (200 if ids else 204)

    await asyncio.to_thread(send)
    assert target.responses[200] and target.responses[204] and target.responses[400]
