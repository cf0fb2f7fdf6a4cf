"""The same clips through a whole service, uploaded and by URL: the stored keyframes are the frames of their times.

One gateway and one worker with a scripted model serve all clips. The worker downloads from a file server of the test.
"""

import asyncio
import io
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.hostile_server import HostileServer, file, hostile_server
from tests.media.clips import CONTAINERS_AND_CODECS, PROPERTIES, Clip, Shown
from tests.media.test_times import SEEKING_S, check, on_screen, readable
from tests.soak.cluster import Cluster
from tests.workers.clips import number_of

PARALLEL = 4
WAYS = ("upload", "url")
POSSIBLE = tuple(clip for clip in (*CONTAINERS_AND_CODECS, *PROPERTIES) if clip.is_possible)
OPTIONS = {"keyframes": "interval", "interval_s": SEEKING_S, "mode": "fast"}
TIMEOUT_S = 300


class Service(Cluster):
    """A service whose workers may download from one server of this machine."""

    source = ""

    @property
    def _env(self) -> dict[str, str]:
        return {**super()._env, "ALLOWED_HOSTS": self.source}

    async def submit(self, path: Path, way: str, server: HostileServer) -> httpx.Response:
        if way == "url":
            return await self.http.post("/captions", json={"url": server.url(f"/{path.name}"), **OPTIONS})
        return await self.http.post("/captions", data=OPTIONS, files={"file": (path.name, path.read_bytes())})

    async def keyframes(self, path: Path, way: str, server: HostileServer) -> Any:
        """Return the number and the time of each keyframe, or the error of the request or the job."""
        answer = await self.submit(path, way, server)
        if answer.status_code != 202:
            return answer.json()
        job_id = answer.json()["id"]
        await self.until_ended([job_id], TIMEOUT_S)
        job = (await self.http.get(f"/captions/{job_id}")).json()
        images = [await self.http.get(keyframe["image"]) for keyframe in job["keyframes"]]
        numbers = [number_of(Image.open(io.BytesIO(image.content))) for image in images]
        times = [keyframe["time_s"] for keyframe in job["keyframes"]]
        return job["error"] or tuple(zip(numbers, times, strict=True))


async def caption_all(directory: Path) -> dict[tuple[str, str], Any]:
    """Caption every clip in both ways. Returns the keyframes, or the error, of each."""
    places, results = asyncio.Semaphore(PARALLEL), dict[tuple[str, str], Any]()
    cluster = Service(directory, word_s=0.0, slots=PARALLEL, lease_s=10.0)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(hostile_server())
        cluster.source = server.hosts
        await stack.enter_async_context(cluster)
        await cluster.start_gateway()
        await cluster.start_workers(1)

        async def caption(path: Path, way: str) -> None:
            async with places:
                results[path.name, way] = await cluster.keyframes(path, way, server)

        async with asyncio.TaskGroup() as tasks:
            for clip in POSSIBLE:
                path = clip.write(directory)
                server.answers[f"/{path.name}"] = file(path.read_bytes())
                for way in WAYS:
                    tasks.create_task(caption(path, way))
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], Any]]:
    yield asyncio.run(caption_all(tmp_path_factory.mktemp("media")))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("clip", POSSIBLE, ids=lambda clip: clip.name)
def test_each_keyframe_is_the_frame_of_its_time(results: dict[tuple[str, str], Any], clip: Clip, way: str) -> None:
    keyframes: Shown = results[clip.name, way]
    assert isinstance(keyframes, tuple), keyframes
    check(keyframes, on_screen(readable(clip, keyframes), SEEKING_S))
