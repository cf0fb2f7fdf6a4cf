"""A user's whole visit to the page with the real engine, on every device, and with an API key. `make soak` runs it.

`SCREENSHOTS=docs/images` makes it draw the screenshots of the documentation.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.service.web.browsing import CHROMIUM, chromium, open_page
from tests.service.web.visit import COMBINATIONS, Visitor, demo_site, visit
from tests.whole_service import Service, whole_service
from workers.demo import scenes

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed"),
    pytest.mark.skipif("SOAK" not in os.environ, reason="one visit is part of tests/test_end_to_end.py"),
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with whole_service(tmp_path_factory.mktemp("service")) as started:
        yield started


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("videos")
    first, second = folder / "sample.mp4", folder / "square.mp4"
    scenes.write_clip(first, scenes.sample_clip())
    scenes.write_clip(second, scenes.make_scene(7))
    return first, second


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> Any:
    async with chromium() as started:
        yield started


@pytest.mark.parametrize("name", COMBINATIONS)
async def test_a_visit_without_a_key(browser: Any, service: Service, videos: tuple[Path, Path], name: str) -> None:
    assert await visit(browser, demo_site(str(service.http.base_url)), name, *videos) == 0


async def test_a_visit_with_a_key_and_a_low_rate_limit(
    browser: Any, service: Service, videos: tuple[Path, Path]
) -> None:
    """From here on, the service needs keys. Requests that the limit refuses are sent again, and nothing is lost."""
    command = [sys.executable, "-m", "sharecap_client.cli", "keys", "add", "visitor", "--requests-per-minute", "50"]
    command += ["--jobs", "1", "--data-dir", str(service.data_dir)]
    key = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    site = demo_site(str(service.http.base_url))
    async with open_page(browser, **COMBINATIONS["phone-light"]) as page:
        await Visitor(page, site).try_wrong_keys()
    assert await visit(browser, site, "desktop-light", *videos, key=key) > 0
