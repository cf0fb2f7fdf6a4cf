"""Both clients with a real gateway: all methods, resumed streams, repeated requests, errors."""

import asyncio
import inspect
import io
import os
import random
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import httpx
import pytest
from sharecap_client import AsyncClient, Client, JobCancelled, ServiceUnreachable, streams, transport
from sharecap_client.api import AsyncSubmittedJob
from sharecap_client.blocking import SubmittedJob
from sharecap_client.errors import (
    EngineFailed,
    IdempotencyConflict,
    InvalidOption,
    NotFound,
    RateLimited,
    Unauthorized,
    UnexpectedAnswer,
)

from service.access.api_keys import ApiKeyStore, KeyLimits
from service.contract import errors as contract
from service.contract.events import Event, Failed, Started
from service.contract.storage.local import keyframe_path
from service.contract.store.store import Store
from tests.client.cutting_proxy import CuttingProxy
from tests.service.scripted import ScriptedWorker, Serve, Served, recaption_events, video_events

T = TypeVar("T")
TYPES = ["queued", *(event.type for event in video_events(""))]


@asynccontextmanager
async def working(
    worker: ScriptedWorker, script: Callable[[str], list[Event]], pause_s: float = 0
) -> AsyncIterator[None]:
    task = worker.serve(script, pause_s)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(autouse=True)
def no_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "RECONNECT_AFTER_S", 0)
    monkeypatch.setattr(transport, "FIRST_DELAY_S", 0)


async def test_a_file_is_captioned_and_followed(gateway: Served, worker: ScriptedWorker, clip: Path) -> None:
    async with working(worker, video_events), AsyncClient(gateway.url) as client:
        job = await client.caption(clip, interval_s=1.5, parallel=False, metadata={"a": "b"})
        assert [event.type async for event in job] == TYPES
        ended = await job.wait(timeout_s=30)
    assert ended.caption == "A light square moves to the right."
    assert (ended.options["interval_s"], ended.options["parallel"], ended.metadata) == (1.5, False, {"a": "b"})
    assert ended.source is not None and ended.source.filename == "clip.mp4"


async def test_the_blocking_client_does_the_same(gateway: Served, worker: ScriptedWorker, clip: Path) -> None:
    def run() -> None:
        with Client(gateway.url) as client:
            with clip.open("rb") as file:
                job = client.caption(file, filename="x.mp4")
            events = list(job)
            assert [event.type for event in events] == TYPES
            assert [event.id for event in events] == list(range(1, len(TYPES) + 1))
            assert [event.id for event in job.events(after=9)] == [10, 11]
            assert job.wait(timeout_s=30).caption == "A light square moves to the right."
            assert [listed.id for listed in client.jobs(kind="video")] == [job.id]
            first = next(job.events())  # the rest of the stream is not read
            assert first.type == "queued"
            job.delete()
            with pytest.raises(NotFound):
                client.job(job.id)
        with pytest.raises(RuntimeError, match="closed"):
            client.job(job.id)
        client.close()

    async with working(worker, video_events):
        await asyncio.to_thread(run)


def test_both_clients_have_the_same_methods_and_parameters() -> None:
    def public(kind: type) -> dict[str, list[str]]:
        methods = inspect.getmembers(kind, inspect.isfunction)
        return {name: list(inspect.signature(method).parameters) for name, method in methods if name[0] != "_"}

    methods = public(AsyncClient)
    methods["close"] = methods.pop("aclose")
    assert public(Client) == methods
    assert public(SubmittedJob) == public(AsyncSubmittedJob)


@pytest.mark.parametrize("cut_after", [400, 800])
async def test_a_cut_stream_is_resumed(gateway: Served, worker: ScriptedWorker, clip: Path, cut_after: int) -> None:
    port = httpx.URL(gateway.url).port
    assert port is not None
    async with working(worker, video_events), CuttingProxy(port, 2, cut_after).running() as proxy:
        async with AsyncClient(proxy.url) as client:
            job = await client.caption(clip)
            assert (await job.wait()).status == "completed"
            proxy._cuts = 2
            proxy.resumed_after.clear()
            assert [event.type async for event in job.events()] == TYPES
        assert len(proxy.resumed_after) == 3 and proxy.resumed_after[0] == b""
        proxy._cuts = 2
        proxy.resumed_after.clear()

        def run() -> list[str]:
            with Client(proxy.url) as client:
                return [event.type for event in client.events(job.id)]

        assert await asyncio.to_thread(run) == TYPES
        assert len(proxy.resumed_after) == 3


async def test_a_repeated_request_creates_one_job(gateway: Served, worker: ScriptedWorker, clip: Path) -> None:
    port = httpx.URL(gateway.url).port
    assert port is not None
    async with CuttingProxy(port, losses=1).running() as proxy, AsyncClient(proxy.url) as client:
        await anext(client.jobs(), None)  # the service was reached before
        await client.caption(clip)
        proxy._losses = 1
        await client.recaption("a fox")
        assert len([job async for job in client.jobs()]) == 2
    async with AsyncClient(gateway.url) as client:
        one = await client.recaption("a fox", idempotency_key="k")
        assert (await client.recaption("a fox", idempotency_key="k")).id == one.id
        with pytest.raises(IdempotencyConflict):
            await client.recaption("a cat", idempotency_key="k")


async def test_clips_keyframes_and_lists(gateway: Served, worker: ScriptedWorker, clip: Path) -> None:
    async with AsyncClient(gateway.url) as client:
        async with working(worker, video_events):
            job = await client.caption(str(clip))
            await job.wait()
        file = keyframe_path(gateway.settings.data_dir, job.id, 1)
        file.parent.mkdir(parents=True)
        file.write_bytes(b"jpeg")
        assert await client.keyframe(job.id, 1) == b"jpeg"
        async with working(worker, recaption_events):
            part = await (await client.clip(job.id, 0.5, 2.5, max_tokens=64)).wait()
        assert (part.kind, part.caption, part.options["max_tokens"]) == ("clip", "A red fox.", 64)
        assert [one.caption async for one in client.clips(job.id)] == ["A red fox."]
        assert [one.id async for one in client.jobs(status="completed")] == [part.id, job.id]
        assert (await client.cancel(job.id)).status == "completed"


async def test_a_failed_and_a_cancelled_job_raise_their_errors(gateway: Served, worker: ScriptedWorker) -> None:
    failure = Failed.of(contract.EngineFailed("The engine stopped."))
    async with AsyncClient(gateway.url) as client:
        async with working(worker, lambda _: [Started(attempt=1), failure]):
            job = await client.recaption("a fox")
            with pytest.raises(EngineFailed, match="The engine stopped") as raised:
                await job.wait()
            assert (raised.value.job_id, raised.value.retryable) == (job.id, True)
            assert (await job.wait(check=False)).status == "failed"
        queued = await client.recaption("a fox")
        with pytest.raises(TimeoutError):
            await queued.wait(timeout_s=0.1)
        assert (await queued.cancel()).status == "cancelled"
        with pytest.raises(JobCancelled):
            await queued.wait()


async def test_refusals_raise_the_class_of_their_code(gateway: Served, store: Store, clip: Path) -> None:
    async with AsyncClient(gateway.url.removeprefix("http://")) as client:
        with pytest.raises(InvalidOption, match="did you mean interval_s") as raised:
            await client.caption(clip, interval=1)  # type: ignore[call-arg]
        assert (raised.value.code, raised.value.status, raised.value.retryable) == ("invalid_option", 422, False)
        with pytest.raises(NotFound):
            await anext(client.events("cap_none"))
        with pytest.raises(OSError):
            await client.caption("no-such.mp4")
        await ApiKeyStore(store.redis).add("me", KeyLimits())
        with pytest.raises(Unauthorized):
            async with asyncio.timeout(10):
                while True:  # the service notices the first key within two seconds
                    await anext(client.jobs(), None)
                    await asyncio.sleep(0.1)


def answers(*given: httpx.Response | Exception) -> tuple[AsyncClient, list[httpx.Request]]:
    """Return a client whose requests get these answers in turn, and the list of the requests."""
    requests: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        result = given[min(len(requests), len(given)) - 1]
        if isinstance(result, Exception):
            raise result
        return result

    return AsyncClient("http://service", transport=httpx.MockTransport(answer)), requests


def problem(status: int, code: str, **headers: str) -> httpx.Response:
    body = {"code": code, "detail": "later", "retryable": True}
    return httpx.Response(status, json=body, headers=headers)


async def test_temporary_errors_are_repeated_with_the_same_key() -> None:
    job = httpx.Response(
        202,
        json={
            "id": "cap_1",
            "kind": "recaption",
            "status": "queued",
            "created_at": 0,
            "links": {"self": "", "events": ""},
        },
    )
    failures = (problem(503, "queue_unavailable"), httpx.Response(502), httpx.ReadError("reset"), job)
    client, requests = answers(*failures)
    assert (await client.recaption("a fox")).id == "cap_1"
    assert len({request.headers["Idempotency-Key"] for request in requests}) == 1 and len(requests) == 4


async def test_what_cannot_succeed_soon_is_not_repeated() -> None:
    for answer, kind in (
        (httpx.ConnectError("refused"), ServiceUnreachable),
        (problem(429, "rate_limited", **{"Retry-After": "600"}), RateLimited),
        (httpx.Response(404, text="nothing here"), UnexpectedAnswer),
        (httpx.Response(200, text="hello"), UnexpectedAnswer),
    ):
        client, requests = answers(answer)
        with pytest.raises(kind):
            await client.job("cap_1")
        assert len(requests) == 1


async def test_the_delay_follows_the_service() -> None:
    error = RateLimited("later", retry_after_s=7)
    assert transport.delay_s(0, error) == 7


async def test_an_upload_is_repeated_from_its_beginning() -> None:
    sizes: list[int] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sizes.append(len(request.content))
        return problem(503, "queue_unavailable")

    client = AsyncClient("http://service", transport=httpx.MockTransport(answer), retries=2)
    with pytest.raises(Exception, match="later"):
        await client.caption(io.BytesIO(bytes(1000)))
    assert len(sizes) == 3 and len(set(sizes)) == 1 and sizes[0] > 1000


class Recorder(io.BytesIO):
    """A file that notes which threads have read it."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.threads: set[threading.Thread] = set()

    def read(self, size: int | None = -1) -> bytes:
        self.threads.add(threading.current_thread())
        return super().read(size)


async def test_a_video_is_read_in_threads() -> None:
    client, _ = answers(problem(503, "queue_unavailable"))
    video = Recorder(bytes(3_000_000))
    with pytest.raises(Exception, match="later"):
        await client.caption(video)
    assert video.threads and threading.main_thread() not in video.threads


async def test_a_video_from_a_pipe_is_sent_whole_and_repeated(tmp_path: Path) -> None:
    bodies: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(request.content)
        return problem(503, "queue_unavailable")

    pipe, content = tmp_path / "pipe", random.randbytes(300_000)
    os.mkfifo(pipe)
    client = AsyncClient("http://service", transport=httpx.MockTransport(answer), retries=1)
    writing = asyncio.create_task(asyncio.to_thread(pipe.write_bytes, content))
    with pytest.raises(Exception, match="later"):
        await client.caption(pipe)
    await writing
    assert len(bodies) == 2 and all(content in body for body in bodies)


async def test_an_interrupted_blocking_call_is_cancelled(gateway: Served) -> None:
    """A thread that stops waiting for events leaves nothing behind that keeps the client from closing."""

    def run() -> int:
        client = Client(gateway.url)
        job = client.recaption("a fox")
        events = job.events()
        next(events)
        with pytest.raises(TimeoutError):
            client.wait(job.id, timeout_s=0.1)
        del events
        client.close()
        return sum(thread.name == "sharecap client" for thread in threading.enumerate())

    assert await asyncio.to_thread(run) == 0


async def test_a_service_with_other_settings(serve: Serve) -> None:
    async with serve(max_upload_bytes=100) as small, AsyncClient(small.url) as client:
        with pytest.raises(Exception, match="video_too_large"):
            await client.caption(io.BytesIO(bytes(5_000_000)), filename="a.mp4")
