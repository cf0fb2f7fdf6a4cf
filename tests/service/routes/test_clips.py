"""Clips over HTTP: they use stored results only, also those of running jobs; invalid bounds are refused."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.contract.events import Differential, Started
from service.contract.jobs import JobKind, JobStatus
from service.contract.storage.local import upload_path
from service.contract.store.store import Store
from tests.conftest import MakeClip
from tests.fake_captioner import FakeCaptioner
from tests.service.scripted import ScriptedWorker, Served
from tests.workers.conftest import Bench
from workers.prompts.trained import TRAINED_PROMPTS as prompts

NO_WAIT = {"Prefer": "wait=0"}


@pytest.fixture
async def bench(gateway: Served, store: Store, redis_url: str) -> AsyncIterator[Bench]:
    """Workers with scripted models that serve the gateway's jobs."""
    bench = Bench(store, redis_url, gateway.settings.data_dir)
    yield bench
    for runner in bench.runners:
        await runner.stop(0)


async def test_a_clip_of_a_running_job_whose_upload_is_deleted(
    gateway: Served, bench: Bench, tmp_path: Path, make_clip: MakeClip
) -> None:
    captioner = FakeCaptioner(delay_s=0.05)
    runner = bench.runner(captioner)
    clip = make_clip(tmp_path / "clip.mp4", seconds=20)
    video = (await gateway.post_video(clip, keyframes="interval", interval_s="0.5")).json()["id"]
    await asyncio.to_thread(runner.run_job, video)
    await bench.until(video, lambda job: len(job.differentials) >= 4)
    upload_path(gateway.settings.data_dir, video).unlink(missing_ok=True)
    assert gateway.files == [name for name in gateway.files if name.endswith(".jpg")]
    bounds = {"start_s": 0.7, "end_s": 1.5}
    posted = await gateway.client.post(f"/captions/{video}/clips", json=bounds, headers=NO_WAIT)
    assert posted.status_code == 202, posted.text
    await bench.run(runner, posted.json()["id"])
    parent = (await gateway.client.get(f"/captions/{video}")).json()
    assert parent["status"] == "running"
    answer = (await gateway.client.get(posted.headers["location"])).json()
    assert (answer["status"], answer["kind"], answer["parent"]) == ("completed", "clip", video)
    [turn] = [turn for turn in captioner.turns if turn.image is None]
    assert turn.prompt == prompts.summary([(d["time_s"], d["text"]) for d in parent["differentials"][1:4]])
    assert answer["usage"]["image_tokens"] == 0
    assert answer["caption"]


@pytest.mark.parametrize(
    ("start_s", "end_s", "message"),
    [
        (3.0, 5.0, "start_s"),
        (99, 100, "start_s"),
        (-1, 2, "start_s"),
        (0, 3.2, "end_s"),
        (1, 1, "end_s must be greater"),
        (2, 1, "end_s must be greater"),
        (0, 0, "end_s"),
        (None, 1, "start_s"),
        (0, "1", "end_s"),
    ],
)
async def test_empty_bounds_and_bounds_outside_the_video_are_refused(
    gateway: Served, worker: ScriptedWorker, clip: Path, *, start_s: float, end_s: float, message: str
) -> None:
    video = (await gateway.post_video(clip)).json()["id"]  # its duration is 3 s
    lease = await worker.claim(video)
    await worker.append(lease, Started(attempt=1), Differential(keyframe=0, time_s=0.0, text="A square."))
    body = {"start_s": start_s, "end_s": end_s}
    answer = await gateway.client.post(f"/captions/{video}/clips", json=body, headers=NO_WAIT)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_option")
    assert message in answer.json()["detail"]


async def test_a_clip_can_cover_the_whole_video(gateway: Served, worker: ScriptedWorker, clip: Path) -> None:
    video = (await gateway.post_video(clip)).json()["id"]
    duration_s = (await gateway.client.get(f"/captions/{video}")).json()["source"]["duration_s"]
    assert duration_s == pytest.approx(3)
    body = {"start_s": 0, "end_s": duration_s}
    early = await gateway.client.post(f"/captions/{video}/clips", json=body, headers=NO_WAIT)
    assert (early.status_code, early.json()["code"]) == (422, "invalid_option"), "no differential caption exists yet"
    lease = await worker.claim(video)
    await worker.append(lease, Started(attempt=1), Differential(keyframe=0, time_s=0.0, text="A square."))
    answer = await gateway.client.post(f"/captions/{video}/clips", json=body, headers=NO_WAIT)
    assert answer.status_code == 202
    assert await worker.store.kind_and_status(answer.json()["id"]) == (JobKind.CLIP, JobStatus.QUEUED)


async def test_a_clip_of_a_recaption_is_refused(gateway: Served) -> None:
    job_id = (await gateway.client.post("/recaption", json={"prompt": "A fox"}, headers=NO_WAIT)).json()["id"]
    answer = await gateway.client.post(f"/captions/{job_id}/clips", json={"start_s": 0, "end_s": 1})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_option")
