"""Recaptions and clips: waiting, not waiting, streaming, and clients that disconnect."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.contract.errors import EngineFailed
from service.contract.events import Event, Failed, Started
from service.contract.store.store import Store
from tests.service.scripted import ScriptedWorker, Serve, Served, eventually, recaption_events, video_events


async def post(gateway: Served, body: Any, **headers: str) -> httpx.Response:
    return await gateway.client.post("/recaption", json=body, headers=headers)


async def test_a_recaption_waits_for_its_result(gateway: Served, worker: ScriptedWorker) -> None:
    await worker.show_card()
    working = worker.serve(recaption_events)
    answer = await post(gateway, {"prompt": "A fox", "temperature": 0.5, "metadata": {"a": "b"}})
    working.cancel()
    assert (answer.status_code, answer.headers["preference-applied"]) == (200, "wait=60")
    job = answer.json()
    assert (job["kind"], job["status"], job["caption"]) == ("recaption", "completed", "A red fox.")
    assert (job["options"]["prompt"], job["options"]["temperature"], job["metadata"]) == ("A fox", 0.5, {"a": "b"})
    assert answer.headers["location"] == f"/captions/{job['id']}"


async def test_waiting_ends_after_the_requested_time(gateway: Served, worker: ScriptedWorker) -> None:
    await worker.show_card()
    async with asyncio.timeout(3):
        answer = await post(gateway, {"prompt": "A fox"}, Prefer="wait=1")
    assert (answer.status_code, answer.headers["preference-applied"]) == (202, "wait=1")
    assert answer.json()["status"] == "queued"


async def test_waiting_without_a_worker_is_refused(gateway: Served, store: Store) -> None:
    answer = await post(gateway, {"prompt": "A fox"})
    assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (503, "no_worker", True)
    assert await store.redis.keys("*") == []
    answer = await post(gateway, {"prompt": "A fox"}, Prefer="wait=0")
    assert answer.status_code == 202 and "preference-applied" not in answer.headers


@pytest.mark.parametrize("preference", ["wait=soon", "wait=-1", "wait", "return=minimal", ""])
async def test_an_invalid_preference_is_ignored(gateway: Served, preference: str) -> None:
    assert (await post(gateway, {"prompt": "A fox"}, Prefer=preference)).json()["code"] == "no_worker"


async def test_a_waiting_request_receives_the_error_of_a_failed_job(gateway: Served, worker: ScriptedWorker) -> None:
    await worker.show_card()
    failure: list[Event] = [Started(attempt=1), Failed.of(EngineFailed("The engine is gone."))]
    working = worker.serve(lambda job_id: failure)
    answer = await post(gateway, {"prompt": "A fox"})
    working.cancel()
    problem = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert (problem["code"], problem["detail"], problem["retryable"]) == ("engine_failed", "The engine is gone.", True)
    assert problem["job"] == answer.headers["location"]
    assert (await gateway.client.get(problem["job"])).json()["error"]["code"] == "engine_failed"


@pytest.mark.parametrize("requested_by", ["body", "header"])
async def test_a_recaption_is_streamed(gateway: Served, worker: ScriptedWorker, requested_by: str) -> None:
    working = worker.serve(recaption_events)
    body = {"prompt": "A fox", **({"stream": True} if requested_by == "body" else {})}
    headers = {"Accept": "text/event-stream"} if requested_by == "header" else {}
    answer = await post(gateway, body, **headers)
    working.cancel()
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    types = [line[7:] for line in answer.text.splitlines() if line.startswith("event: ")]
    assert types == ["queued", "started", "delta", "delta", "caption", "completed"]
    again = await gateway.client.get(answer.headers["location"] + "/events")
    assert again.text == answer.text


async def test_a_job_continues_after_its_client_disconnects(gateway: Served, worker: ScriptedWorker) -> None:
    async with gateway.client.stream("POST", "/recaption", json={"prompt": "A fox", "stream": True}) as answer:
        await anext(answer.aiter_raw())
        job_path = answer.headers["location"]
    working = worker.serve(recaption_events)

    async def done() -> bool:
        return (await gateway.client.get(job_path)).json()["caption"] == "A red fox."

    await eventually(done)
    working.cancel()


async def test_invalid_bodies_are_refused(gateway: Served, store: Store) -> None:
    for body, message in (
        ({}, "prompt: "),
        ({"prompt": ""}, "prompt: "),
        ({"prompt": "x" * 4001}, "prompt: "),
        ({"prompt": 3}, "prompt: "),
        ({"prompt": "x", "seed": "3"}, "seed: "),
        ({"prompt": "x", "max_tokens": True}, "max_tokens: "),
        ({"prompt": "x", "mode": "fast"}, "mode: unknown option"),
        ({"prompt": "x", "stream": "yes"}, "stream: "),
        ({"prompt": "x", "metadata": None}, "metadata: "),
        ([], "body: "),
        ("x", "body: "),
    ):
        answer = await post(gateway, body)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_option"), body
        assert answer.json()["detail"].startswith(message), answer.text
    for content in (
        b"",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"prompt": "a", "prompt": "b"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "' + b"x" * (1 << 20) + b'"}',
    ):
        json = {"content-type": "application/json"}
        answer = await gateway.client.post("/recaption", content=content, headers=json)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_option"), content[:20]
    answer = await gateway.client.post("/recaption", data={"prompt": "A fox"})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media")
    assert await store.redis.keys("*") == []


async def test_a_stopping_gateway_answers_waiting_requests(serve: Serve, worker: ScriptedWorker) -> None:
    await worker.show_card()
    async with serve() as gateway, httpx.AsyncClient(base_url=gateway.url, trust_env=False) as client:
        waiting = asyncio.create_task(client.post("/recaption", json={"prompt": "A fox"}))
        await worker.oldest_queued()
        await asyncio.sleep(0.1)
        gateway.server.should_exit = True
        assert (await asyncio.wait_for(waiting, 3)).status_code == 202


async def test_a_clip_is_a_separate_job(gateway: Served, worker: ScriptedWorker, clip: Path) -> None:
    job_id = (await gateway.post_video(clip)).json()["id"]
    path = f"/captions/{job_id}/clips"
    for body, message in (
        ({"start_s": 0, "end_s": 2}, "end_s: the job has no differential caption"),
        ({"start_s": 2, "end_s": 1}, "end_s must be greater"),
        ({"start_s": 3, "end_s": 4}, "start_s: the video lasts 3.000 s"),
        ({"start_s": 0}, "end_s: "),
    ):
        answer = await gateway.client.post(path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_option")
        assert answer.json()["detail"].startswith(message)
    await worker.append(await worker.claim(job_id), *video_events(job_id)[:6])
    await worker.show_card()
    working = worker.serve(recaption_events)
    answer = await gateway.client.post(path, json={"start_s": 0, "end_s": 2})
    working.cancel()
    job = answer.json()
    assert (answer.status_code, job["kind"], job["parent"], job["caption"]) == (200, "clip", job_id, "A red fox.")
    assert len(await worker.store.redis.lrange("rq:queue:clip", 0, -1)) == 1
    answer = await gateway.client.post(f"/captions/{job['id']}/clips", json={"start_s": 0, "end_s": 2})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_option")
