"""The web page and the page of the API: headers, no inline code, no other hosts, and agreement with the API."""

import asyncio
import os
import re
import shutil
import signal
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import suppress
from html.parser import HTMLParser
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import cast, get_args

import pytest

import service
from service.contract.events import FINAL_EVENT_TYPES, Caption, Completed, Differential, Event, Started
from service.contract.jobs import Timings, Usage, VideoOptions
from tests.service.scripted import ScriptedWorker, Served

WEB = Path(service.__file__).parent / "web"
BROWSER_RUNS = 5
CHROMIUM = shutil.which("chromium") or ""
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".mp4": "video/mp4",
}


SWAGGER_UI = [
    Path(directory, "static", name)
    for directory in cast(ModuleSpec, find_spec("fastapi_offline")).submodule_search_locations or []
    for name in ("swagger-ui-bundle.js", "swagger-ui.css")
]
FILES = [*WEB.iterdir(), *SWAGGER_UI]


class Elements(HTMLParser):
    """The elements of a page with their attributes, and the text inside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.inline = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside in ("script", "style"):
            self.inline += data.strip()


def elements(name: str = "index.html") -> Elements:
    return Elements((WEB / name).read_text())


def directives(policy: str) -> dict[str, list[str]]:
    parts = [part.split() for part in policy.split(";")]
    return {name: values for name, *values in parts}


async def test_every_file_has_its_media_type_and_the_security_headers(gateway: Served) -> None:
    paths = {"/": "text/html", "/docs": "text/html"} | {f"/web/{path.name}": TYPES[path.suffix] for path in FILES}
    for path, media_type in paths.items():
        answer = await gateway.client.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"].split(";")[0].replace("application/java", "text/java") == media_type
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-cache"
        policy = directives(answer.headers["content-security-policy"])
        assert policy.pop("default-src") == policy.pop("frame-ancestors") == policy.pop("base-uri") == ["'none'"]
        assert policy.pop("form-action") == policy.pop("trusted-types") == ["'none'"]
        assert policy.pop("script-src") == policy.pop("style-src") == policy.pop("connect-src") == ["'self'"]
        assert policy.pop("media-src") == ["'self'", "blob:", "http:", "https:"]
        assert policy == {"img-src": ["'self'", "blob:", "data:"], "require-trusted-types-for": ["'script'"]}
        again = await gateway.client.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert (await gateway.client.head(path)).headers["content-length"] == answer.headers["content-length"]


async def test_other_paths_under_web_are_not_found(gateway: Served) -> None:
    for path in ("nothing.js", "..%2fapp.py", "%2e%2e/app.py", "..%5capp.py", "%00", "x" * 5000, "", ".", "sub/app.js"):
        answer = await gateway.client.get(f"/web/{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path
    assert (await gateway.client.post("/")).status_code == 405
    assert (await gateway.client.delete("/web/app.js")).status_code == 405


async def test_every_file_that_the_page_refers_to_is_served(gateway: Served) -> None:
    pages = [*elements().elements, *elements("docs.html").elements]
    named = {value for _, attributes in pages for name, value in attributes.items() if name in ("src", "href")}
    assert {"web/app.js", "web/style.css", "web/icon.svg"} <= named
    assert {"web/docs.js", *(f"web/{path.name}" for path in SWAGGER_UI), "openapi.json"} <= named
    for script in WEB.glob("*.js"):
        named |= {f"web/{name}" for name in re.findall(r'from "\./([\w.]+)"', script.read_text())}
    for address in named:
        assert (await gateway.client.get(f"/{address}")).status_code == 200, address


@pytest.mark.parametrize("name", ["index.html", "docs.html"])
def test_a_page_has_no_inline_code_and_no_resources_of_other_hosts(name: str) -> None:
    page = elements(name)
    assert page.inline == ""
    for tag, attributes in page.elements:
        assert tag not in ("style", "iframe", "object", "embed", "base")
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcdoc", "formaction")]
        assert not [v for n, v in attributes.items() if n in ("src", "href", "action") and re.match(r"/|\w+:", v)]
    for path in WEB.iterdir() if name == "index.html" else ():
        if path.suffix == ".mp4":
            continue
        addresses = re.findall(r"(?:https?:)?//[\w.-]+\.\w+", path.read_text())
        assert addresses in ([], ["http://www.w3.org"]), path.name
    assert not re.search(r"url\(|@import|expression", (WEB / "style.css").read_text())


@pytest.mark.parametrize("script", sorted(WEB.glob("*.js")), ids=lambda path: path.name)
def test_scripts_do_not_use_dangerous_functions(script: Path) -> None:
    dangerous = (
        r"innerHTML|outerHTML|insertAdjacentHTML|createContextualFragment|setHTML|document\.write|parseFromString"
    )
    dangerous += r"|srcdoc|\beval\b|\bFunction\(|import\(|javascript:|localStorage|cookie|setTimeout\([\"'`]"
    assert not re.search(dangerous, script.read_text())


async def test_pages_that_load_files_of_other_hosts_are_not_served(gateway: Served) -> None:
    for path in ("/redoc", "/docs/oauth2-redirect"):
        assert (await gateway.client.get(path)).status_code == 404


async def shown_by_browser(url: str, profile: Path, text: str) -> str:
    """Return the elements of a page as a browser without network shows them once they contain `text`.

    The browser's virtual time does not wait for event streams, so a slow machine needs several runs.
    """
    for _ in range(BROWSER_RUNS):
        shown = await _shown_by_browser(url, profile)
        if text in shown:
            return shown
    raise AssertionError(f"the page does not show {text!r}: {shown}")


async def _shown_by_browser(url: str, profile: Path) -> str:
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    network = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--no-proxy-server"]
    command = [CHROMIUM, *options, *network, "--virtual-time-budget=8000", "--dump-dom", url]
    browser = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=DEVNULL, start_new_session=True)
    try:
        shown, _ = await asyncio.wait_for(browser.communicate(), 60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(browser.pid, signal.SIGKILL)
    return shown.decode()


@needs_browser
async def test_a_browser_marks_texts_that_were_cut_off(gateway: Served, worker: ScriptedWorker, tmp_path: Path) -> None:
    job_id = (await gateway.client.post("/recaption", json={"prompt": "x"}, headers={"Prefer": "wait=0"})).json()["id"]
    caption, end = Caption(text="A red", finish_reason="length"), Completed(usage=Usage(), timings_s=Timings())
    complete = Differential(keyframe=0, time_s=0, text="A star.", finish_reason="stop")
    cut_off = Differential(keyframe=1, time_s=2, text="The star", finish_reason="length")
    await worker.append(await worker.claim(job_id), Started(attempt=1), complete, cut_off, caption, end)
    shown = await shown_by_browser(f"{gateway.url}/#{job_id}", tmp_path, "Completed: 0 prompt tokens")
    assert sorted(re.findall(r'class="text cut-off"[^>]*>([^<]+)', shown)) == ["A red", "The star"]
    assert ">Expanded prompt</h3>" in shown
    assert '.cut-off::after { content: " (cut off at max_tokens)"' in (WEB / "style.css").read_text()


def test_every_field_has_a_label() -> None:
    page = elements()
    labelled = {attributes.get("for") for tag, attributes in page.elements if tag == "label"}
    text = (WEB / "index.html").read_text()
    within = "".join(re.findall(r"<label\b[^>]*>.*?</label>", text, re.DOTALL))
    for tag, attributes in page.elements:
        if tag in ("input", "select", "textarea"):
            assert attributes.get("id") in labelled or f'name="{attributes["name"]}"' in within, attributes
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_options_match_those_of_the_service() -> None:
    options = (WEB / "index.html").read_text().split('id="options"')[1].split("</details>")[0]
    page = Elements(options)
    names = {attributes["name"] for _, attributes in page.elements if "name" in attributes}
    assert len(names) >= 12 and names <= set(VideoOptions.model_fields)
    for name in ("mode", "keyframes"):
        select = Elements(options.split(f'name="{name}"')[1].split("</select>")[0])
        values = tuple(attributes["value"] for tag, attributes in select.elements if tag == "option")
        assert values == get_args(VideoOptions.model_fields[name].annotation)
        assert values[0] == VideoOptions.model_fields[name].default


def test_every_event_type_is_handled() -> None:
    types = {kind.model_fields["type"].default for kind in get_args(get_args(Event)[0])}
    script = (WEB / "job.js").read_text()
    assert types - FINAL_EVENT_TYPES | {"gap", "interrupted"} == set(re.findall(r'case "(\w+)":', script))
    assert "FINAL_STATUSES.has(type)" in script
