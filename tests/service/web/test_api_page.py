"""The page of the API, `/docs`, in a browser without network: what it shows about options and parameters."""

import json
from typing import Any

import pytest
import pytest_asyncio

from tests.service.scripted import Serve
from tests.service.web.browsing import CHROMIUM, DESKTOP, chromium, open_page, playwright

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed"),
]
BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "maxLength", "maxProperties")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> Any:
    async with chromium() as started:
        yield started


def plain(text: str) -> str:
    return " ".join(text.split())


def as_text(bound: float) -> str:
    if bound == 2**63:
        return "2^63"
    return str(int(float(bound))) if bound > 2**53 else str(bound)  # a large number is rounded in JavaScript


def texts_of(option: dict[str, Any]) -> list[str]:
    """Return what the page must say about an option or parameter: its description, all bounds and an example."""
    schema = option.get("schema", option)
    [value] = [part for part in schema.get("anyOf", [schema]) if part.get("type") != "null"]
    bounds = [as_text(value[name]) for name in BOUNDS if name in value]
    choices = [str(choice) for choice in value.get("enum", [])]
    example = option.get("example") or [*option.get("examples", []), *schema.get("examples", [])][0]
    shown = example if isinstance(example, str) else json.dumps(example, separators=(",", ":")).removesuffix(".0")
    return [plain(option["description"]), *bounds, *choices, f"Example: {plain(shown)}"]


def check_text(shown: str, option: dict[str, Any]) -> None:
    for text in texts_of(option):
        assert text in plain(shown), (text, shown)


async def rows(target: Any, attribute: str) -> dict[str, str]:
    """Return the text of each row of a table by the value of this attribute."""
    script = "(rows, attribute) => rows.map((row) => [row.getAttribute(attribute), row.innerText])"
    return dict(await target.locator(f"tr[{attribute}]").evaluate_all(script, attribute))


async def texts_of_body(section: Any, media_type: str, names: list[str]) -> dict[str, str]:
    """Return the text of each option of a request body: the rows of a form, or the whole schema of a JSON body."""
    await section.get_by_label("Request content type").select_option(media_type)
    if media_type != "application/json":
        return await rows(section, "data-property-name")
    await section.get_by_role("tab", name="Schema").click()
    expand = section.locator(".json-schema-2020-12-expand-deep-button").first  # the one of the whole body
    for label in ("Expand all", "Collapse all"):
        await expand.click()
        await playwright.expect(expand).to_have_text(label)
    return dict.fromkeys(names, await section.inner_text())


async def test_the_browser_of_these_tests_reaches_no_other_host(browser: Any) -> None:
    page = await browser.new_page()
    for address in ("https://example.org/", "http://192.0.2.1/"):
        with pytest.raises(playwright.Error, match="ERR_NAME_NOT_RESOLVED"):
            await page.goto(address)
    await page.close()


async def test_the_page_shows_every_route_option_and_error(browser: Any, serve: Serve) -> None:
    """Of an option or parameter: description, bounds and an example. Of an error: its code."""
    async with serve() as gateway, open_page(browser, **DESKTOP) as page:
        document = (await gateway.client.get("/openapi.json")).json()
        await page.goto(f"{gateway.url}/docs")
        for operation in (each for methods in document["paths"].values() for each in methods.values()):
            block = page.locator(f"[id='operations-{operation['tags'][0]}-{operation['operationId']}']")
            await block.locator(".opblock-summary-control").click()
            responses = await block.locator(".responses-wrapper").inner_text()
            assert all(plain(each["description"]) in plain(responses) for each in operation["responses"].values())
            shown = await rows(block, "data-param-name")
            for parameter in operation.get("parameters", []):
                check_text(shown[parameter["name"]], parameter)
            for media_type, body in operation.get("requestBody", {}).get("content", {}).items():
                options = body["schema"]["properties"]
                texts = await texts_of_body(block.locator(".opblock-section-request-body"), media_type, list(options))
                for name, option in options.items():
                    check_text(texts[name], option)
            await block.locator(".opblock-summary-control").click()
