"""The page in a real browser, on a desktop and on a phone, light and dark, with a scripted worker behind it."""

import json
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sharecap_client.formats import render
from sharecap_client.models import Job

from service.access.api_keys import ApiKeyStore, KeyLimits
from service.contract.events import Differential, Fetching, Started
from service.contract.store.connection import connect
from service.contract.store.store import Store
from tests.service.scripted import ScriptedWorker, Serve, Served, eventually
from tests.service.web.browsing import (
    CAPTION,
    CHROMIUM,
    CLIP_CAPTION,
    DESKTOP,
    PHONE,
    SAMPLE,
    TEXTS,
    WAIT_MS,
    BrowserWorker,
    check_accessibility_light_and_dark,
    chromium,
    downloaded,
    drop,
    open_page,
    playwright,
)
from tests.service.web.visit import Site, visit

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed"),
]
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Any]:
    async with chromium() as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def store(redis_url: str) -> AsyncIterator[Store]:
    async with connect(redis_url) as client:
        yield Store(client)


def expect(target: Any) -> Any:
    return playwright.expect(target)


async def send(page: Any, *files: Path) -> None:
    await page.locator("[name=file]").set_input_files(files)
    await page.get_by_role("button", name="Caption", exact=True).click()


async def until(page: Any, expression: str) -> None:
    """Wait until the expression is true. Playwright's own function uses `eval`, which the page's policy forbids."""

    async def holds() -> bool:
        return bool(await page.evaluate(expression))

    await eventually(holds, WAIT_MS / 1000)


async def check_frame_links(page: Any) -> None:
    """Frame numbers in captions lead to the cards, and back."""
    await page.locator("[data-part=caption] .mention").click()
    await expect(page.locator(".frame").nth(2)).to_be_focused()
    await page.locator(".frame").nth(2).get_by_role("button", name="in the caption").click()
    await expect(page.locator(".mention:focus")).to_have_text("frame 3")


async def check_downloads(page: Any, gateway: Served) -> None:
    """The downloads are those of the command line."""
    job = Job.model_validate((await gateway.client.get(f"/captions/{page.url.partition('#')[2]}")).json())
    assert json.loads(await downloaded(page, "JSON"))["caption"] == CAPTION
    for suffix, label in (("srt", "SRT"), ("vtt", "WebVTT"), ("md", "Markdown"), ("csv", "CSV")):
        assert await downloaded(page, label) == render(job, suffix), suffix  # type: ignore[arg-type]


async def test_a_whole_visit(browser: Any, serve: Serve, store: Store, tmp_path: Path) -> None:
    first, second = (Path(shutil.copy(SAMPLE, tmp_path / file)) for file in ("first.mp4", "second.mp4"))
    async with serve(heartbeat_s=0.5) as gateway:
        worker = BrowserWorker(ScriptedWorker(store), gateway)
        worker.may_start.set()
        async with worker.running():
            site = Site(
                gateway.url,
                re.compile(re.escape(CAPTION)),
                re.compile(re.escape(CLIP_CAPTION)),
                finish_jobs=worker.may_finish.set,
                hold_jobs=worker.may_start.clear,
            )
            await visit(browser, site, "phone-dark", first, second)


async def test_a_broken_file_fails_alone_and_captions_arrive_after_a_reload(
    browser: Any, serve: Serve, store: Store, tmp_path: Path
) -> None:
    first, second = (Path(shutil.copy(SAMPLE, tmp_path / name)) for name in ("first.mp4", "second.mp4"))
    text = tmp_path / "broken.mp4"
    text.write_text("not a video")
    async with serve(heartbeat_s=0.5) as gateway, open_page(browser, **DESKTOP) as page:
        worker = BrowserWorker(ScriptedWorker(store), gateway)
        async with worker.running():
            await page.goto(gateway.url)
            await send(page, first, text, second)
            rows = page.locator("#queue-rows > li")
            await expect(rows).to_have_count(3)
            await expect(rows.nth(1).locator(".about.error")).to_be_visible()
            await expect(page.locator("[data-part=status]")).to_contain_text("number 1 in the queue")
            await expect(rows.nth(2).locator("a")).to_be_visible()

            worker.may_start.set()
            await expect(page.locator("[data-part=status]")).to_have_text("40 %: 2 of 4 keyframes captioned")
            await page.reload()
            await expect(page.locator(".frame .text").nth(1)).to_have_text(TEXTS[1])
            worker.may_finish.set()
            await expect(page.locator("[data-part=caption]")).to_have_text(CAPTION)
            await expect(page.locator("[data-part=title]")).to_have_text("first.mp4")
            await expect(page.locator("#jobs a")).to_have_count(2)
            await expect(page.locator(".tick.shot")).to_have_count(1)
            await check_frame_links(page)
            await check_downloads(page, gateway)


async def test_a_file_is_cancelled_and_all_captions_are_downloaded(
    browser: Any, serve: Serve, store: Store, tmp_path: Path
) -> None:
    async with serve(heartbeat_s=0.5) as gateway, open_page(browser, **DESKTOP) as page:
        worker = BrowserWorker(ScriptedWorker(store), gateway)
        async with worker.running():
            await page.goto(gateway.url)
            await page.get_by_role("button", name="Try a sample clip").click()
            await expect(page.locator("[data-part=status]")).to_contain_text("number 1 in the queue")
            await page.get_by_role("button", name="Cancel", exact=True).click()
            await expect(page.locator("[data-part=status]")).to_have_text("Cancelled")
            worker.may_start.set()
            worker.may_finish.set()
            await page.locator("summary", has_text="Options").click()
            await page.get_by_label("Keep the video").check()
            folder = tmp_path / "folder" / "deeper"
            folder.mkdir(parents=True)
            shutil.copy(SAMPLE, folder / "kept.mp4")
            (folder / "notes.txt").write_text("not a video")
            await page.locator("[name=folder]").set_input_files(folder.parent)
            await expect(page.locator("#chosen")).to_have_text("kept.mp4")
            await expect(page.locator("#left-out")).to_have_text("Not videos, left out: notes.txt")
            await page.get_by_role("button", name="Caption", exact=True).click()
            await expect(page.locator("#queue-rows > li").nth(1)).to_contain_text("folder/deeper/kept.mp4")
            await page.get_by_role("link", name="kept.mp4").first.click()
            await expect(page.locator("[data-part=caption]")).to_have_text(CAPTION)
            async with page.expect_download() as download:
                await page.get_by_role("button", name="Download all as JSONL").click()
            [line] = Path(await (await download.value).path()).read_text().splitlines()
            assert (json.loads(line)["title"], json.loads(line)["caption"]) == ("kept.mp4", CAPTION)
            await page.reload()
            await until(page, "document.querySelector('video')?.readyState >= 1")
            await page.get_by_role("button", name="Frame 4 at 0:06.50", exact=True).click()
            await expect(page.locator(".frame[aria-current]")).to_contain_text("Frame 4")


async def test_api_keys_and_hostile_texts_on_a_dark_phone(
    browser: Any, serve: Serve, store: Store, tmp_path: Path
) -> None:
    hostile = Path(shutil.copy(SAMPLE, tmp_path / f"{HOSTILE.replace('/', '')}.mp4"))
    _, key = await ApiKeyStore(store.redis).add("phone", KeyLimits())
    async with serve(heartbeat_s=0.5) as gateway, open_page(browser, **PHONE) as page:
        worker = BrowserWorker(ScriptedWorker(store), gateway)
        worker.texts, worker.caption = (HOSTILE, *TEXTS[1:]), f"{HOSTILE}<script>alert(2)</script> in frame 2"
        worker.may_start.set()
        worker.may_finish.set()
        async with worker.running():
            await page.goto(gateway.url)
            await expect(page.locator("#jobs-problem")).to_have_text("Enter an API key above.")
            for value, note in (("sc_wrong", "This API key is not valid."), (key, "")):
                await page.get_by_label("Key (stored until this tab is closed)").fill(value)
                await page.get_by_role("button", name="Use").click()
                await expect(page.locator("#key-note")).to_have_text(note or re.compile(".*"))
            await expect(page.locator("#no-jobs")).to_have_text("No jobs yet.")

            refused = []

            async def refuse_once(route: Any) -> None:
                path = route.request.url.partition("?")[0]
                if path in refused:
                    await route.continue_()
                else:
                    refused.append(path)
                    problem = {"detail": "Too many requests", "code": "rate_limited"}
                    await route.fulfill(status=429, headers={"Retry-After": "1"}, json=problem)

            await page.route(re.compile(r"/keyframes/|/captions$|/captions/cap_\w+$|/video\?"), refuse_once)
            await page.locator("summary", has_text="Options").click()
            await page.get_by_label("Keep the video").check()
            await send(page, hostile)
            await expect(page.locator("[data-part=caption]")).to_have_text(worker.caption)
            await expect(page.locator("[data-part=title]")).to_contain_text(HOSTILE)
            await expect(page.locator(".frame .text").first).to_have_text(HOSTILE)
            assert len(refused) >= 2
            loaded = "[...document.querySelectorAll('.thumbs button:not([hidden]) img')].every(i => i.naturalWidth)"
            await until(page, loaded)

            # the kept video plays through a token, because <video> sends no key
            await page.reload()
            await until(page, "document.querySelector('video')?.readyState >= 1")
            assert "?token=sct_" in await page.locator("video").get_attribute("src")
            assert await page.locator("video").evaluate("video => video.duration") == pytest.approx(8, abs=0.2)

            job, forms = await page.locator("#job").bounding_box(), await page.locator("#side").bounding_box()
            assert job["y"] < forms["y"], "on a phone the current job comes first"
            assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            await check_accessibility_light_and_dark(page)
            await page.evaluate("sessionStorage.setItem('sharecap-key', 'sc_wrong')")
            await page.reload()
            await expect(page.locator("#jobs-problem")).to_have_text("Enter an API key above.")
            await expect(page.locator("#job")).to_have_text("This API key is not valid.")


async def test_a_download_shows_its_progress_and_a_clip_names_its_video(
    browser: Any, serve: Serve, store: Store
) -> None:
    url = "http://8.8.8.8/films/day.mp4"  # nothing fetches it: the worker is scripted
    scripted = ScriptedWorker(store)
    async with serve(heartbeat_s=0.5) as gateway, open_page(browser, **DESKTOP) as page:
        await page.goto(gateway.url)
        await page.get_by_label("or the URL of a video").fill(url)
        await page.get_by_role("button", name="Caption", exact=True).click()
        await expect(page.locator("[data-part=title]")).to_have_text("day.mp4")
        lease = await scripted.claim(await scripted.oldest_queued())
        await scripted.append(lease, Started(attempt=1), Fetching(received_bytes=43, total_bytes=100))
        await expect(page.locator("[data-part=status]")).to_have_text("Fetching the video, 43 %")
        await expect(page.locator("video")).to_have_attribute("src", url)
        await expect(page.locator("video")).to_have_attribute("preload", "none")
        await scripted.append(lease, Differential(keyframe=0, time_s=0.0, text="A day."))
        part = {"start_s": 0, "end_s": 2}
        path = f"/captions/{lease.job_id}/clips"
        answer = await gateway.client.post(path, json=part, headers={"Prefer": "wait=0"})
        assert answer.status_code == 202, answer.text
        await page.goto(f"{gateway.url}/#{answer.json()['id']}")
        await expect(page.locator("[data-part=title]")).to_have_text("Part 0:00.00 to 0:02.00 of day.mp4")


async def test_the_banner_says_what_a_demonstration_knows(browser: Any, serve: Serve, store: Store) -> None:
    scripted = ScriptedWorker(store)
    async with serve() as gateway, open_page(browser, **PHONE) as page:
        await scripted.show_card(demonstration="Knows only shapes.")
        await eventually(lambda: _ready(gateway))
        await page.goto(gateway.url)
        await expect(page.locator("#banner")).to_have_text("Knows only shapes.")
        await check_accessibility_light_and_dark(page)


async def test_the_videos_of_a_dropped_folder_are_sent(browser: Any, serve: Serve, tmp_path: Path) -> None:
    """A file in it is a video if its ending says so; a file that is dropped by itself is always sent."""
    folder, single = tmp_path / "folder" / "deeper", tmp_path / "single"
    folder.mkdir(parents=True)
    for path in (folder / "raw.h264", folder.parent / "disc.VOB", single):
        shutil.copy(SAMPLE, path)
    for number in range(5):
        (folder / f"{number}.txt").write_text("not a video")
    async with serve() as gateway, open_page(browser, **DESKTOP) as page:
        await page.goto(gateway.url)
        await drop(page, "#drop", folder.parent, single)
        await expect(page.locator("#chosen")).to_have_text("3 files: single, raw.h264, disc.VOB")
        await expect(page.locator("#left-out")).to_have_text("Not videos, left out: 0.txt, 1.txt, 2.txt and 2 more")
        await page.get_by_role("button", name="Caption", exact=True).click()
        for name in ("single", "folder/disc.VOB", "folder/deeper/raw.h264"):
            await expect(page.locator("#queue-rows").get_by_role("link", name=name, exact=True)).to_be_visible()


async def test_a_job_list_that_cannot_be_loaded_says_why(browser: Any, serve: Serve) -> None:
    async with serve() as gateway, open_page(browser, **DESKTOP) as page:
        problem = {"detail": "Too many requests.", "code": "rate_limited"}

        async def refuse(route: Any) -> None:
            await route.fulfill(status=429, headers={"Retry-After": "60"}, json=problem)

        await page.route(re.compile(r"/captions\?limit="), refuse)
        await page.goto(gateway.url)
        await expect(page.locator("#jobs-problem")).to_have_text("Too many requests.")
        await expect(page.locator("#no-jobs")).to_be_hidden()


async def test_a_page_of_the_job_list_that_cannot_be_loaded_says_why(browser: Any, serve: Serve) -> None:
    async with serve() as gateway, open_page(browser, **DESKTOP) as page:
        for number in range(21):
            answer = await gateway.client.post("/recaption", json={"prompt": str(number)}, headers={"Prefer": "wait=0"})
            assert answer.status_code == 202
        await page.goto(gateway.url)
        await expect(page.locator("#jobs a")).to_have_count(20)
        await page.context.set_offline(True)
        await page.get_by_role("button", name="More", exact=True).click()
        await expect(page.locator("#jobs-problem")).to_have_text("The service cannot be reached.")
        await page.context.set_offline(False)
        await page.get_by_role("button", name="More", exact=True).click()
        await expect(page.locator("#jobs a")).to_have_count(21)
        await expect(page.locator("#jobs-problem")).to_be_hidden()


async def _ready(gateway: Any) -> bool:
    return (await gateway.client.get("/readyz")).json()["demonstration"] == "Knows only shapes."
