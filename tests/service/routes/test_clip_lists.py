"""The clips of a job: `GET /captions/{id}/clips` lists exactly those that exist, page by page, newest first."""

import asyncio
from pathlib import Path

import httpx

from service.access.api_keys import ApiKeyStore, KeyLimits
from service.contract.store.keys import clips_key
from service.contract.store.store import Store
from tests.service.scripted import ScriptedWorker, Served, recaption_events, video_events

NO_WAIT = {"Prefer": "wait=0"}


async def video_job(gateway: Served, worker: ScriptedWorker, clip: Path) -> str:
    """Return the id of a job that has differential captions but has not ended."""
    job_id: str = (await gateway.post_video(clip)).json()["id"]
    lease = await worker.claim(job_id)
    await worker.append(lease, *video_events(job_id)[:-1])
    return job_id


async def add_clip(gateway: Served, video: str, end_s: float) -> str:
    bounds = {"start_s": 0, "end_s": end_s}
    answer = await gateway.client.post(f"/captions/{video}/clips", json=bounds, headers=NO_WAIT)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def pages(gateway: Served, video: str, limit: int) -> list[list[str]]:
    """Return the ids of all pages."""
    listed, cursor = [], None
    while True:
        params = {"limit": limit, **({"cursor": cursor} if cursor else {})}
        answer = (await gateway.client.get(f"/captions/{video}/clips", params=params)).raise_for_status().json()
        listed.append([clip["id"] for clip in answer["clips"]])
        if (cursor := answer["cursor"]) is None:
            return listed


async def test_all_clips_are_listed_page_by_page(gateway: Served, worker: ScriptedWorker, clip: Path) -> None:
    video, other = await video_job(gateway, worker, clip), await video_job(gateway, worker, clip)
    assert await pages(gateway, video, 2) == [[]]
    ids = []
    for end_s in (0.5, 1.0, 1.5, 2.0):
        ids.append(await add_clip(gateway, video, end_s))
        await asyncio.sleep(0.002)  # the list is ordered by the time in milliseconds
    await add_clip(gateway, other, 1.0)
    newest = ids[::-1]
    assert await pages(gateway, video, 2) == [newest[:2], newest[2:]]
    assert await pages(gateway, video, 3) == [newest[:3], newest[3:]]
    assert await pages(gateway, video, 4) == [newest]


async def test_clips_are_listed_with_their_results(gateway: Served, worker: ScriptedWorker, clip: Path) -> None:
    video = await video_job(gateway, worker, clip)
    clip_id = await add_clip(gateway, video, 1.5)
    lease = await worker.claim(clip_id)
    await worker.append(lease, *recaption_events(clip_id))
    [listed] = (await gateway.client.get(f"/captions/{video}/clips")).json()["clips"]
    assert listed == (await gateway.client.get(f"/captions/{clip_id}")).json()
    assert (listed["status"], listed["caption"], listed["options"]["end_s"]) == ("completed", "A red fox.", 1.5)


async def test_deleted_clips_and_jobs_are_not_listed(
    gateway: Served, worker: ScriptedWorker, store: Store, clip: Path
) -> None:
    video = await video_job(gateway, worker, clip)
    first, second = await add_clip(gateway, video, 1.0), await add_clip(gateway, video, 1.5)
    assert (await gateway.client.delete(f"/captions/{first}")).status_code == 204
    assert await pages(gateway, video, 1) == [[second]]
    assert (await gateway.client.delete(f"/captions/{video}")).status_code == 204
    assert (await gateway.client.get(f"/captions/{video}/clips")).status_code == 404
    assert not await store.redis.exists(clips_key(video))
    assert (await gateway.client.get(f"/captions/{second}")).status_code == 200  # a clip is a job of its own


async def test_clips_are_listed_only_for_the_key_of_the_job(
    gateway: Served, worker: ScriptedWorker, store: Store, clip: Path
) -> None:
    keys = ApiKeyStore(store.redis)
    gateway.client.headers["Authorization"] = f"Bearer {(await keys.add('one', KeyLimits()))[1]}"
    video = await video_job(gateway, worker, clip)
    await add_clip(gateway, video, 1.0)
    assert len((await pages(gateway, video, 10))[0]) == 1
    headers = {"Authorization": f"Bearer {(await keys.add('two', KeyLimits()))[1]}"}
    async with httpx.AsyncClient(base_url=gateway.url, headers=headers, trust_env=False) as other:
        assert (await other.get(f"/captions/{video}/clips")).json()["code"] == "not_found"


async def test_a_malformed_cursor_is_refused(gateway: Served, worker: ScriptedWorker, clip: Path) -> None:
    video = await video_job(gateway, worker, clip)
    for name, value in (("cursor", "x"), ("limit", "0"), ("limit", "101")):
        answer = await gateway.client.get(f"/captions/{video}/clips", params={name: value})
        assert answer.json()["code"] == "invalid_option"
