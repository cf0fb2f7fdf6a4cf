"""Showing, listing, cancelling and deleting jobs; keyframes; unknown jobs and paths."""

from pathlib import Path

import httpx
import pytest

from service.contract.events import Started
from service.contract.jobs import JobKind
from service.contract.storage.local import keyframe_path
from service.contract.store.keys import ALIVE, events_key, job_key
from service.contract.store.leases import CancelRequested, Fenced
from service.contract.store.store import Store
from service.job_states import JobStates
from tests.service.scripted import ScriptedWorker, Served, recaption_events, video_events

MALFORMED_RECORDS = {
    "no JSON": {"record": "{"},
    "no object": {"record": "[]"},
    "empty": {"record": ""},
    "no kind": {"record": '{"options": {}}'},
    "unknown kind": {"record": '{"kind": [], "options": {}}'},
}
MALFORMED_EVENTS = {
    "no time": {"type": "caption", "data": "{}"},
    "no type": {"data": "{}", "at": "1"},
    "bad time": {"type": "started", "data": '{"attempt": 1}', "at": "9" * 30},
    "bad data": {"type": "started", "data": "[1]", "at": "1"},
}
UNKNOWN = "cap_" + "0" * 32


async def post_recaption(gateway: Served, prompt: str = "A fox") -> str:
    answer = await gateway.client.post("/recaption", json={"prompt": prompt}, headers={"Prefer": "wait=0"})
    assert answer.status_code == 202
    return str(answer.json()["id"])


def code(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["code"]


async def test_a_job_shows_all_its_results(gateway: Served, worker: ScriptedWorker, clip: Path) -> None:
    job_id = (await gateway.post_video(clip)).json()["id"]
    lease = await worker.claim(job_id)
    events = video_events(job_id)
    await worker.append(lease, *events[:6])
    job = (await gateway.client.get(f"/captions/{job_id}")).json()
    assert (job["status"], job["attempts"], job["interval_s"], job["caption"]) == ("running", 1, 2.0, None)
    assert job["differentials"] == [{"keyframe": 0, "time_s": 0.0, "text": "A light square.", "finish_reason": None}]
    await worker.append(lease, *events[6:])
    job = (await gateway.client.get(f"/captions/{job_id}")).json()
    assert (job["status"], job["caption"]) == ("completed", "A light square moves to the right.")
    assert job["usage"] == {"prompt_tokens": 100, "image_tokens": 80, "completion_tokens": 20}
    assert [k["image"] for k in job["keyframes"]] == [f"/captions/{job_id}/keyframes/{n}.jpg" for n in (0, 1)]
    assert job["created_at"] < job["started_at"] < job["finished_at"]
    assert job["source"]["filename"] == "clip.mp4"


async def test_unknown_jobs_and_paths_are_not_found(gateway: Served) -> None:
    client = gateway.client
    for job_id in (UNKNOWN, "x", "cap_..%2f..%2fetc", "%00"):
        for answer in (
            await client.get(f"/captions/{job_id}"),
            await client.get(f"/captions/{job_id}/keyframes/0.jpg"),
            await client.post(f"/captions/{job_id}/cancel"),
            await client.delete(f"/captions/{job_id}"),
            await client.post(f"/captions/{job_id}/clips", json={"start_s": 0, "end_s": 1}),
        ):
            assert code(answer) == (404, "not_found")
    assert code(await client.get("/nowhere")) == (404, "not_found")
    assert code(await client.put("/captions")) == (405, "method_not_allowed")
    assert (await client.put("/captions")).headers["allow"]


async def test_an_internal_error_reveals_no_implementation_details(
    gateway: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await post_recaption(gateway)
    monkeypatch.setattr(JobStates, "job", lambda *_: JobKind("secret"))
    answer = await gateway.client.get(f"/captions/{job_id}")
    assert code(answer) == (500, "internal")
    assert "secret" not in answer.text and "Traceback" not in answer.text
    assert answer.headers["connection"] == "close"
    metrics = (await gateway.client.get("/metrics")).text
    assert 'sharecap_http_responses_total{method="GET",route="/captions/{job_id}",status="500"} 1.0' in metrics


async def test_a_list_has_pages_and_filters(gateway: Served, worker: ScriptedWorker, clip: Path) -> None:
    recaptions = [await post_recaption(gateway, str(n)) for n in range(5)]
    video = (await gateway.post_video(clip)).json()["id"]
    await worker.append(await worker.claim(recaptions[1]), Started(attempt=1))

    async def listed(**params: object) -> list[str]:
        job_ids: list[str] = []
        while True:
            page = (await gateway.client.get("/captions", params=params)).json()
            job_ids += [job["id"] for job in page["jobs"]]
            if page["cursor"] is None:
                return job_ids
            params["cursor"] = page["cursor"]

    everything = [video, *reversed(recaptions)]
    for limit in (1, 2, 3, 6, 100):
        assert await listed(limit=limit) == everything
    assert await listed(kind="video", limit=2) == [video]
    assert await listed(status="running", limit=1) == [recaptions[1]]
    assert await listed(status="completed") == []
    page = (await gateway.client.get("/captions", params={"kind": "video"})).json()
    facts = {"id", "kind", "status", "title", "source", "parent", "metadata", "created_at", "links"}
    assert set(page["jobs"][0]) == facts
    assert (page["jobs"][0]["status"], page["jobs"][0]["source"]["filename"]) == ("queued", "clip.mp4")


async def test_a_list_leaves_out_unreadable_records(
    gateway: Served, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    ids = []
    for _ in range(len(MALFORMED_RECORDS) + 2):
        ids.append(await post_recaption(gateway))
    for job_id, damage in zip(ids, (*MALFORMED_RECORDS.values(), {"status": "odd"}), strict=False):
        await store.redis.hset(job_key(job_id), mapping=damage)
    answer = await gateway.client.get("/captions")
    assert [job["id"] for job in answer.json()["jobs"]] == ids[-1:]
    assert all(job_id in caplog.text for job_id in ids[:-1]) and ids[-1] not in caplog.text


@pytest.mark.parametrize("damage", MALFORMED_RECORDS.values(), ids=MALFORMED_RECORDS)
async def test_an_unreadable_record_is_not_found_and_can_be_deleted(
    gateway: Served, store: Store, caplog: pytest.LogCaptureFixture, damage: dict[str, str]
) -> None:
    job_id = await post_recaption(gateway)
    await store.redis.hset(job_key(job_id), mapping=damage)
    for method, path in (("GET", ""), ("POST", "/cancel"), ("POST", "/clips")):
        answer = await gateway.client.request(method, f"/captions/{job_id}{path}", json={"start_s": 0, "end_s": 1})
        assert code(answer) == (404, "not_found"), path
        assert "deleted" in answer.json()["detail"]
    assert job_id in caplog.text
    await check_deleted(gateway, store, job_id)


@pytest.mark.parametrize("damage", MALFORMED_EVENTS.values(), ids=MALFORMED_EVENTS)
async def test_an_unreadable_event_is_not_found_and_can_be_deleted(
    gateway: Served, store: Store, damage: dict[str, str]
) -> None:
    job_id = await post_recaption(gateway)
    await store.redis.xadd(events_key(job_id), damage, id="2-0")
    assert code(await gateway.client.get(f"/captions/{job_id}")) == (404, "not_found")
    assert code(await gateway.client.post(f"/captions/{job_id}/cancel")) == (404, "not_found")
    await check_deleted(gateway, store, job_id)


@pytest.mark.parametrize("ended", [False, True])
async def test_a_job_with_an_unknown_status_can_be_read_and_deleted(
    gateway: Served, store: Store, worker: ScriptedWorker, *, ended: bool
) -> None:
    job_id = await post_recaption(gateway)
    if ended:
        await worker.append(await worker.claim(job_id), *recaption_events(job_id))
    await store.redis.hset(job_key(job_id), "status", "odd")
    for path in ("", "/events"):
        answer = await gateway.client.get(f"/captions/{job_id}{path}")
        assert answer.status_code == 200
    assert code(await gateway.client.get(f"/captions/{job_id}/events?after=1")) == (404, "not_found")
    assert code(await gateway.client.post(f"/captions/{job_id}/cancel")) == (404, "not_found")
    await check_deleted(gateway, store, job_id)


async def test_a_job_whose_events_were_lost_can_be_deleted(gateway: Served, store: Store) -> None:
    job_id = await post_recaption(gateway)
    await store.redis.delete(events_key(job_id))
    await check_deleted(gateway, store, job_id)


async def check_deleted(gateway: Served, store: Store, job_id: str) -> None:
    """Delete the job, and check that nothing is left of it."""
    assert (await gateway.client.delete(f"/captions/{job_id}")).status_code == 204
    left = await store.redis.keys(f"*{job_id}*")
    assert [name for name in left if not name.startswith("rq:")] == []
    assert (await gateway.client.get("/captions")).json()["jobs"] == []


async def test_a_list_names_the_invalid_parameter(gateway: Served) -> None:
    for name, value in (("limit", "0"), ("limit", "101"), ("status", "lost"), ("kind", "x"), ("cursor", "x")):
        answer = await gateway.client.get("/captions", params={name: value})
        assert code(answer) == (422, "invalid_option")
        assert answer.json()["detail"].startswith(f"{name}: ")


async def test_cancelling_is_idempotent(gateway: Served, worker: ScriptedWorker) -> None:
    queued, running = await post_recaption(gateway), await post_recaption(gateway)
    for _ in range(2):
        answer = await gateway.client.post(f"/captions/{queued}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    lease = await worker.claim(running)
    await worker.append(lease, Started(attempt=1))
    for _ in range(2):
        answer = await gateway.client.post(f"/captions/{running}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "running")
    with pytest.raises(CancelRequested):
        await worker.store.renew(lease)


async def test_deleting_a_job_removes_its_files_and_redis_keys(
    gateway: Served, worker: ScriptedWorker, store: Store, clip: Path
) -> None:
    job_id = (await gateway.post_video(clip)).json()["id"]
    lease = await worker.claim(job_id)
    await worker.append(lease, Started(attempt=1))
    keyframe = keyframe_path(gateway.settings.data_dir, job_id, 0)
    keyframe.parent.mkdir(parents=True)
    keyframe.write_bytes(b"jpeg")
    assert (await gateway.client.delete(f"/captions/{job_id}")).status_code == 204
    assert gateway.files == []
    assert not keyframe.parent.exists()
    assert set(await store.redis.keys("sharecap:*")) <= {ALIVE}, "the reapers' marks belong to no job"
    assert code(await gateway.client.delete(f"/captions/{job_id}")) == (404, "not_found")
    with pytest.raises(Fenced):
        await worker.append(lease, Started(attempt=1))


async def test_keyframes_are_served(gateway: Served, clip: Path) -> None:
    job_id = (await gateway.post_video(clip)).json()["id"]
    keyframe = keyframe_path(gateway.settings.data_dir, job_id, 3)
    keyframe.parent.mkdir(parents=True)
    keyframe.write_bytes(b"\xff\xd8\xffjpeg")
    answer = await gateway.client.get(f"/captions/{job_id}/keyframes/3.jpg")
    assert (answer.status_code, answer.headers["content-type"], answer.content) == (
        200,
        "image/jpeg",
        b"\xff\xd8\xffjpeg",
    )
    assert answer.headers["x-content-type-options"] == "nosniff"
    for other in ("4.jpg", "x.jpg", "-1.jpg", "3.png", "..%2f..%2fuploads%2f" + job_id):
        assert code(await gateway.client.get(f"/captions/{job_id}/keyframes/{other}")) == (404, "not_found")
