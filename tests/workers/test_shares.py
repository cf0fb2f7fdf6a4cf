"""Shares of API keys: places for videos and downloads, and sequences in the engine."""

import asyncio

from service.contract.jobs import JobKind
from service.contract.store.turns import FETCH
from service.contract.store.wakeups import QUEUES, RESUMED
from tests.service.contract.store.sample_jobs import new_record
from workers.settings import Settings
from workers.shares import EngineShares, VideoPlaces

URL = {"source": {"url": "https://example.com/a.mp4"}}


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_text_jobs_of_a_key_do_not_wait_for_its_videos() -> None:
    shares = EngineShares(4)
    video = shares.permit(new_record(owner="a"))
    text = shares.permit(new_record(owner="a", kind=JobKind.CLIP, options={"start_s": 0, "end_s": 1}, source=None))
    async with video(4), asyncio.timeout(1), text(4):
        pass


async def test_jobs_without_a_key_are_not_bounded() -> None:
    permit = EngineShares(4).permit(new_record())
    async with asyncio.timeout(1), permit(3), permit(3), permit(3):
        pass


async def test_downloads_take_no_slot_until_they_are_complete() -> None:
    places = VideoPlaces(2, Settings(downloads=4, key_share=0.5))
    downloads = [places.enter(new_record(owner="a", **URL), resumed=False) for _ in range(2)]
    assert places.open_queues == QUEUES
    assert places.room() == {"recaption": [], "clip": [], FETCH: ["a"], "video": []}
    await downloads[0].enter_slot()
    assert places.room()["video"] == ["a"] and places.room()[FETCH] == []
    waiting = asyncio.create_task(downloads[1].enter_slot())
    await settle()
    assert not waiting.done(), "the key holds its share of the slots"
    other = places.enter(new_record(owner="b"), resumed=False)
    assert JobKind.VIDEO not in places.open_queues and RESUMED in places.open_queues
    downloads[0].leave()
    async with asyncio.timeout(1):
        await waiting
    other.leave()
    downloads[1].leave()
    downloads[1].leave()
    assert places.room() == {"recaption": [], "clip": [], FETCH: [], "video": []}


async def test_resumed_videos_may_use_twice_the_slots() -> None:
    places = VideoPlaces(1, Settings(downloads=1))
    places.enter(new_record(owner="a"), resumed=False)
    resumed = places.enter(new_record(owner="a", **URL), resumed=True)
    assert FETCH not in places.open_queues
    async with asyncio.timeout(1):
        await resumed.enter_slot()
    assert RESUMED not in places.open_queues and FETCH in places.open_queues
