"""A real browser for the tests of the page: Debian's Chromium, driven by Playwright, and a scripted worker for it."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import psutil
import pytest

import service
from service.contract.events import (
    Caption,
    Completed,
    Delta,
    Differential,
    Event,
    Keyframes,
    Started,
    Video,
)
from service.contract.jobs import JobKind, Keyframe, Timings, Usage
from service.contract.storage.local import LocalStorage
from service.contract.store.worker_cards import CARD_EVERY_S
from tests.service.scripted import ScriptedWorker, Served

playwright = pytest.importorskip("playwright.async_api", reason="the package playwright is not installed")
axe = pytest.importorskip("axe_core_python.async_playwright", reason="the package axe-core-python is not installed")
images = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
CHROMIUM = shutil.which("chromium") or ""
SAMPLE = Path(service.__file__).parent / "web" / "sample.mp4"
SCREENSHOTS = os.environ.get("SCREENSHOTS")
"""Directory into which the tests write screenshots; none are made without it."""
WAIT_MS = 20_000
playwright.expect.set_options(timeout=WAIT_MS)
ARGUMENTS = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--no-proxy-server", "--disable-gpu"]
DESKTOP = {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"}
PHONE = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "has_touch": True, "is_mobile": True}

TIMES_S = (0.0, 2.5, 4.5, 6.5)
TEXTS = (
    "A red star on a brown background.",
    "The red star moves to the right.",
    "The red star turns cyan.",
    "The cyan star of frame 3 leaves the frame.",
)
CAPTION = "A red star moves to the right, turns cyan in frame 3, and leaves."
CLIP_CAPTION = "The star turns cyan."


@asynccontextmanager
async def chromium() -> AsyncIterator[Any]:
    """Run one browser without access to other hosts. At the end, its processes and the driver's are killed."""
    if not CHROMIUM:
        pytest.skip("Chromium is not installed")
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    try:
        async with playwright.async_playwright() as driver:
            browser = await driver.chromium.launch(
                executable_path=CHROMIUM, args=ARGUMENTS, chromium_sandbox=False, timeout=3 * WAIT_MS
            )
            yield browser
            await asyncio.wait_for(browser.close(), 10)
    finally:
        for process in psutil.Process().children(recursive=True):
            if process.pid not in before and ("chromium" in process.name() or process.name() == "node"):
                with suppress(psutil.NoSuchProcess, ProcessLookupError):
                    _kill_group(process.pid)


def _kill_group(pid: int) -> None:
    """Kill a process with its group, unless that is the group of the tests."""
    group = os.getpgid(pid)
    if group == os.getpgid(0):
        os.kill(pid, signal.SIGKILL)
    else:
        os.killpg(group, signal.SIGKILL)


@asynccontextmanager
async def open_page(browser: Any, **options: Any) -> AsyncIterator[Any]:
    """Open an empty page. Fails if it has logged an error, used what its policy forbids, or asked another host."""
    context = await browser.new_context(accept_downloads=True, reduced_motion="reduce", **options)
    context.set_default_timeout(WAIT_MS)
    errors: list[str] = []
    try:
        page = await context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if "Content Security Policy" in line.text else None)
        page.on("request", lambda request: None if is_local(request.url) else errors.append(request.url))
        yield page
        assert not errors, errors
    finally:
        await asyncio.wait_for(context.close(), 10)


def is_local(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "blob:http://127.0.0.1:", "data:", "about:"))


async def check_accessibility(page: Any) -> None:
    """Run axe on the page as it is now."""
    result = await axe.Axe().run(page)
    findings = [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in result["violations"]]
    assert not findings, findings


async def check_accessibility_light_and_dark(page: Any) -> None:
    """Run axe on the page as it is now, light and dark. The page keeps its own colours afterwards."""
    dark = await page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    for scheme in ("light", "dark") if dark else ("dark", "light"):
        await page.emulate_media(color_scheme=scheme)
        await check_accessibility(page)


async def screenshot(page: Any, name: str) -> None:
    if SCREENSHOTS:
        await page.screenshot(path=Path(SCREENSHOTS, f"{name}.png"))


async def downloaded(page: Any, label: str) -> str:
    """Download the captions in this format and return the file's text."""
    async with page.expect_download() as download:
        await page.get_by_role("button", name=f"Download as {label}", exact=True).click()
    return Path(await (await download.value).path()).read_text()


async def drag(page: Any, start: float, end: float) -> None:
    """Select a part on the time line with the mouse, or with a finger; `start` and `end` are fractions of its width."""
    track = page.locator(".track")
    await track.scroll_into_view_if_needed()
    box = await track.bounding_box()
    from_x, to_x = (box["x"] + fraction * box["width"] for fraction in (start, end))
    if await page.evaluate("navigator.maxTouchPoints > 0"):
        await _swipe(page, from_x, to_x, box["y"] + 10)
        return
    await page.mouse.move(from_x, box["y"] + 10)
    await page.mouse.down()
    await page.mouse.move(to_x, box["y"] + 10, steps=4)
    await page.mouse.up()


async def drop(page: Any, target: str, *paths: Path) -> None:
    """Drop files and folders on an element, as from a file manager."""
    box = await page.locator(target).bounding_box()
    place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    session = await page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        await session.send("Input.dispatchDragEvent", {"type": kind, **place, "data": data})
    await session.detach()


async def _swipe(page: Any, from_x: float, to_x: float, y: float) -> None:
    """Move a finger sideways. Playwright itself can only tap."""
    session = await page.context.new_cdp_session(page)
    for kind, x in (
        ("touchStart", from_x),
        *(("touchMove", from_x + step / 4 * (to_x - from_x)) for step in range(1, 5)),
    ):
        await session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
    await session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    await session.detach()


class BrowserWorker:
    """A worker that captions every video as the sample clip. `may_finish` holds back the end of video jobs."""

    def __init__(self, worker: ScriptedWorker, gateway: Served) -> None:
        self._worker = worker
        self._storage = LocalStorage(gateway.settings.data_dir)
        self._store = worker.store
        self.may_start = asyncio.Event()
        self.may_finish = asyncio.Event()
        self.texts = TEXTS
        self.caption = CAPTION

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._work())
        try:
            yield
        finally:
            task.cancel()

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as jobs:
            jobs.create_task(self._show_card())
            while True:
                await self.may_start.wait()
                job_id = await self._worker.oldest_queued()
                if self.may_start.is_set():
                    jobs.create_task(self._run(await self._worker.claim(job_id)))

    async def _show_card(self) -> None:
        while True:
            await self._worker.show_card()
            await asyncio.sleep(CARD_EVERY_S)

    async def _run(self, lease: Any) -> None:
        job = await self._store.record(lease.job_id)
        with suppress(Exception):  # the job was cancelled
            if job is not None and job.kind is JobKind.VIDEO:
                await self._caption_video(lease)
            else:
                await self._append(lease, Started(attempt=1), Caption(text=CLIP_CAPTION, finish_reason="stop"))
            usage = Usage(prompt_tokens=100, image_tokens=80, completion_tokens=20)
            await self._append(lease, Completed(usage=usage, timings_s=Timings(decode=0.1)))

    async def _append(self, lease: Any, *events: Event) -> None:
        await self._worker.append(lease, *events)

    async def _caption_video(self, lease: Any) -> None:
        keyframes = [Keyframe(index=k, time_s=time_s, shot=k // 2) for k, time_s in enumerate(TIMES_S)]
        for keyframe in keyframes:
            await self._storage.write_keyframe(lease.job_id, keyframe.index, _picture(keyframe.index))
        await self._append(
            lease,
            Started(attempt=1),
            Video(duration_s=8.0, width=640, height=360, fps=12.0, interval_s=0.5),
            Keyframes(keyframes=keyframes, complete=True),
        )
        for k, text in enumerate(self.texts):
            await self._append(
                lease,
                Delta(of="differential", keyframe=k, text=text[:5]),
                Differential(keyframe=k, time_s=TIMES_S[k], text=text, finish_reason="stop"),
            )
            if k == 1:
                await self.may_finish.wait()
        await self._append(lease, Caption(text=self.caption, finish_reason="stop"))


def _picture(index: int) -> bytes:
    file = BytesIO()
    colour = ((170, 40, 40), (40, 140, 60), (40, 60, 170), (120, 120, 40))[index]
    images.new("RGB", (160, 90), colour).save(file, "JPEG")
    return file.getvalue()
