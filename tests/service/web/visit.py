"""A user's whole visit to the page by mouse, touch and keyboard: with a scripted worker or with the real engine."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sharecap_client.formats import render
from sharecap_client.models import Job

from tests.service.scripted import eventually
from tests.service.web.browsing import (
    DESKTOP,
    PHONE,
    WAIT_MS,
    check_accessibility,
    downloaded,
    drag,
    open_page,
    playwright,
    screenshot,
)

COMBINATIONS = {
    f"{device}-{scheme}": {**options, "color_scheme": scheme}
    for device, options in (("desktop", DESKTOP), ("phone", PHONE))
    for scheme in ("light", "dark")
}


RECORD_STATUSES = """
window.shownStatuses = [];
new MutationObserver(() => {
  const text = document.querySelector("[data-part=status]")?.textContent;
  if (text && shownStatuses.at(-1) !== text) shownStatuses.push(text);
}).observe(document, { subtree: true, childList: true, characterData: true });
"""
"""Records what the status of a job says, because a short job does not wait until a test looks at it."""


def nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Site:
    """A service, and what it says about the first of two videos. The functions control a worker that is scripted."""

    url: str
    caption: re.Pattern[str]
    part: re.Pattern[str]
    finish_jobs: Callable[[], None] = nothing
    """Called when the progress of the first job was seen: lets jobs end."""
    hold_jobs: Callable[[], None] = nothing
    """Called before a job that is to be cancelled: no more jobs start."""
    job_timeout_ms: float = WAIT_MS


def demo_site(url: str) -> Site:
    """Return a service with the demo model, which is sent the sample clip first."""
    return Site(url, re.compile("red star"), re.compile("star"), job_timeout_ms=240_000)


class Visitor:
    """A user with an open page. `key` is sent to a service that asks for one."""

    def __init__(self, page: Any, site: Site, key: str = "") -> None:
        self.page = page
        self.site = site
        self.key = key
        self.expect = playwright.expect
        self.refused = 0
        """Number of requests that the rate limit has refused."""
        page.on("dialog", lambda dialog: dialog.accept())
        page.on("response", self._count_refused)

    def _count_refused(self, response: Any) -> None:
        self.refused += response.status == 429

    def part(self, name: str) -> Any:
        """Return an element of the job."""
        return self.page.locator(f"[data-part={name}]")

    async def press(self, target: Any) -> None:
        """Click, or tap on a phone."""
        touches = await self.page.evaluate("navigator.maxTouchPoints > 0")
        await (target.tap() if touches else target.click())

    async def press_button(self, name: str) -> None:
        await self.press(self.page.get_by_role("button", name=name, exact=True))

    async def choose_files(self, target: Any, *files: Path) -> None:
        """Press what opens the browser's dialog, and choose files in it."""
        async with self.page.expect_file_chooser() as chooser:
            await self.press(target)
        await (await chooser.value).set_files(files)

    async def arrive(self, path: str = "/") -> None:
        await self.page.goto("about:blank")
        await self.page.goto(f"{self.site.url}{path}")
        if self.key:
            await self.enter_key(self.key)
        await self.expect(self.page.locator("#service")).to_contain_text("Ready")

    async def enter_key(self, key: str) -> None:
        if await self.page.locator("#key-value").input_value() == key:
            return  # this tab has it
        await self.expect(self.page.locator("#key-value")).to_be_focused()
        await self.page.keyboard.type(key)
        await self.press_button("Use")

    async def try_wrong_keys(self) -> None:
        """Come without a key, then with a wrong one. The page says what is missing."""
        await self.page.goto(self.site.url)
        problem = self.page.locator("#jobs-problem")
        await self.expect(problem).to_have_text("Enter an API key above.")
        await self.check()
        await self.enter_key("sc_wrong")
        await self.expect(self.page.locator("#key-note")).to_have_text("This API key is not valid.")
        await self.expect(problem).to_have_text("Enter an API key above.")
        await self.check()
        await self.press_button("Try a sample clip")
        await self.expect(self.page.locator("#queue-rows .error")).to_have_text("This API key is not valid.")

    async def check(self) -> None:
        """Check what holds in every state: axe finds nothing, and the page is not wider than the screen."""
        await check_accessibility(self.page)
        assert await self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    # -- the steps

    async def send(self, first: Path, second: Path) -> None:
        await self.choose_files(self.page.locator("#drop"), first, second)
        await self.expect(self.page.locator("#chosen")).to_have_text(f"2 files: {first.name}, {second.name}")
        await self.press_button("Caption")

    async def watch(self, name: str) -> None:
        """Follow the job of this file to its end."""
        await self.press(self.page.locator("#queue-rows a", has_text=name))
        await self.expect(self.part("title")).to_have_text(name)
        await self.expect(self.part("status")).to_contain_text("Completed", timeout=self.site.job_timeout_ms)
        row = self.page.locator("#queue-rows > li", has_text=name)
        await self.expect(row.locator(".about")).to_have_text("Completed")

    async def watch_progress(self) -> None:
        """See a percentage of the first job, and in the queue as well if its jobs last long enough."""
        await eventually(self._has_shown_percentage, self.site.job_timeout_ms / 1000)
        if self.site.finish_jobs is not nothing:
            row = self.page.locator("#queue-rows .about", has_text=re.compile(r"Captioning, \d+ %"))
            await self.expect(row.first).to_be_visible()

    async def _has_shown_percentage(self) -> bool:
        return any(re.fullmatch(r"\d+ %: .+", text) for text in await self.page.evaluate("shownStatuses"))

    async def play(self) -> None:
        video = self.page.locator("video")
        await video.focus()
        await self.page.keyboard.press("Space")
        await eventually(lambda: self._plays(0.2), WAIT_MS / 1000)
        await self.page.keyboard.press("Space")
        assert await video.evaluate("video => video.paused")

    async def _plays(self, after_s: float) -> bool:
        return await self.current_time_s() > after_s

    async def current_time_s(self) -> float:
        return float(await self.page.locator("video").evaluate("video => video.currentTime"))

    async def seek(self) -> None:
        """A thumbnail seeks, and the caption in force is marked."""
        thumb = self.page.locator(".thumbs button:visible").nth(1)
        label = await thumb.get_attribute("aria-label")
        number, minutes, seconds = re.fullmatch(r"Frame (\d) at (\d+):([\d.]+)", label).groups()  # type: ignore[union-attr]
        await self.press(thumb)
        assert await self.current_time_s() == pytest.approx(60 * int(minutes) + float(seconds), abs=0.01)
        frame = self.page.locator(".frame[aria-current]")
        await self.expect(frame).to_contain_text(f"Frame {number}")
        await self.expect(self.part("now")).to_have_text(await frame.locator(".text").inner_text())

    async def select_part(self) -> str:
        """Select a part of the time line, and return its caption."""
        await drag(self.page, 0.3, 0.7)
        article = self.part("clips").locator("article").first
        finished = article.locator(".text:not(.writing)")
        await self.expect(finished).to_have_text(self.site.part, timeout=self.site.job_timeout_ms)
        await self.expect(article.locator("h4")).to_have_text(re.compile(r"0:02\.\d+ to 0:05\.\d+"))
        return str(await finished.inner_text())

    async def reload(self, video: Path, part: str) -> None:
        """After a reload everything is there again, except the video itself, which is opened again."""
        caption = await self.part("caption").inner_text()
        await self.page.reload()
        await self.expect(self.part("caption")).to_have_text(caption)
        await self.expect(self.part("clips").locator(".text")).to_have_text(part)
        await self.choose_files(self.part("open-file"), video)
        await self.expect(self.page.locator("video")).to_be_visible()

    async def find_again(self, name: str) -> None:
        caption = await self.part("caption").inner_text()
        await self.arrive()
        await self.press(self.page.locator("#jobs a", has=self.page.get_by_text(name, exact=True)).first)
        await self.expect(self.part("caption")).to_have_text(caption)

    async def download(self) -> None:
        text = await downloaded(self.page, "JSON")
        assert json.loads(text)["caption"] == await self.part("caption").inner_text()
        assert await downloaded(self.page, "SRT") == render(Job.model_validate_json(text), "srt")

    async def copy_link(self) -> str:
        """Copy the link, and return what can be pasted."""
        await self.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        await self.press_button("Copy link")
        await self.expect(self.page.get_by_role("button", name="Copied")).to_be_visible()
        prompt = self.page.locator("#prompt")
        await self.press(prompt)
        await self.page.keyboard.press("Control+V")
        link = str(await prompt.input_value())
        await prompt.clear()
        return link

    async def cancel(self) -> None:
        """Send the sample clip with much work, so that a cancellation comes in time even if it is refused first."""
        await self.arrive()
        await self.press(self.page.locator("summary", has_text="Options"))
        await self.page.get_by_role("combobox", name="Keyframes").select_option("at intervals")
        await self.page.get_by_label("Interval (s)").fill("0.1")
        await self.page.get_by_label("Beams").fill("8")
        await self.press_button("Try a sample clip")
        await self.press_button("Cancel")
        await self.expect(self.part("status")).to_have_text("Cancelled")

    async def delete(self, link: str) -> None:
        await self.arrive(link.removeprefix(self.site.url))
        await self.press_button("Delete")
        await self.expect(self.page.get_by_role("button", name="Try a sample clip")).to_be_visible()
        await self.arrive(link.removeprefix(self.site.url))
        await self.expect(self.page.locator("#job")).to_have_text("This job does not exist.")
        await self.expect(self.page.locator(f"#jobs a[href='#{link.partition('#')[2]}']")).to_have_count(0)


async def visit(browser: Any, site: Site, name: str, first: Path, second: Path, *, key: str = "") -> int:
    """Take the whole path of a user with the devices and colours called `name`. Returns the number of refused requests.

    `first` is the sample clip. The screenshot `page-NAME` shows its job.
    """
    options = COMBINATIONS[name]
    async with open_page(browser, **options) as page:
        visitor = Visitor(page, site, key)
        await page.add_init_script(RECORD_STATUSES)
        await visitor.arrive()
        await visitor.check()
        await visitor.send(first, second)
        await visitor.watch_progress()
        await visitor.check()
        site.finish_jobs()
        await visitor.watch(second.name)
        await visitor.watch(first.name)
        await visitor.expect(visitor.part("caption")).to_have_text(site.caption)
        await visitor.play()
        await visitor.seek()
        part = await visitor.select_part()
        await page.locator("header").scroll_into_view_if_needed()
        await screenshot(page, f"page-{name}")
        await visitor.check()
        await visitor.reload(first, part)
        await visitor.find_again(first.name)
        await visitor.download()
        link = await visitor.copy_link()
        async with open_page(browser, **options) as other:
            colleague = Visitor(other, site, key)
            await colleague.arrive(link.removeprefix(site.url))
            await colleague.expect(colleague.part("caption")).to_have_text(site.caption)
            await colleague.check()
        site.hold_jobs()
        await visitor.cancel()
        await visitor.check()
        await visitor.delete(link)
        await visitor.check()
        return visitor.refused + colleague.refused
