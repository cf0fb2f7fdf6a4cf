"""Jobs in a terminal, with a real gateway and a scripted worker: requests, output and exit status."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest
from rich.console import Console
from sharecap_client import api as subject
from sharecap_client.api import AsyncClient, RequestFailed
from sharecap_client.cli.terminal import caption_video, printable, recaption_prompt

from service.contract.errors import EngineFailed
from service.contract.events import Caption, Completed, Delta, Differential, Event, Failed, Started
from service.contract.jobs import ErrorInfo, Timings, Usage
from service.presentation import present_event_data
from tests.service.scripted import ScriptedWorker, Served, recaption_events, video_events


@contextmanager
def console(terminal: bool = False) -> Iterator[tuple[Console, io.StringIO]]:
    file = io.StringIO()
    yield Console(file=file, force_terminal=terminal, width=100, highlight=False), file


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


async def test_a_file_is_uploaded_and_its_captions_are_printed(
    gateway: Served, worker: ScriptedWorker, clip: Path
) -> None:
    async with working(worker, video_events):
        with console() as (out, file):
            status = await caption_video(AsyncClient(gateway.url), str(clip), {"interval_s": 1.5}, out)
    assert status == 0
    lines = [line.strip() for line in file.getvalue().splitlines()]
    assert "0.00 s  A light square." in lines
    assert "2.00 s  Das Quadrat fährt nach rechts — 正方形 🟨." in lines
    assert "caption  A light square moves to the right." in lines
    assert lines[-1] == "completed: 100 prompt tokens (80 of them image tokens), 20 generated"
    job = (await gateway.client.get("/captions")).json()["jobs"][0]
    assert job["source"]["filename"] == "clip.mp4"
    assert job["source"]["bytes"] == clip.stat().st_size


async def test_as_json_prints_only_the_job(
    gateway: Served, worker: ScriptedWorker, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with working(worker, video_events):
        with console() as (out, file):
            status = await caption_video(AsyncClient(gateway.url), str(clip), {"interval_s": 1.5}, out, as_json=True)
    assert (status, file.getvalue()) == (0, "")
    job = json.loads(capsys.readouterr().out)
    assert job["status"] == "completed"
    assert job["options"]["interval_s"] == 1.5
    assert job["differentials"][0]["text"] == "A light square."


async def test_text_is_shown_while_it_is_generated(gateway: Served, worker: ScriptedWorker) -> None:
    async with working(worker, recaption_events, pause_s=0.3):
        with console(terminal=True) as (out, file):
            status = await recaption_prompt(AsyncClient(gateway.url), "a fox", out)
    assert status == 0
    output = file.getvalue()
    assert output.index("A red ") < output.index("A red fox.")
    assert "caption" in output


async def test_a_failed_job_prints_the_reason_and_returns_1(gateway: Served, worker: ScriptedWorker) -> None:
    async with working(
        worker, lambda _: [Started(attempt=1), Failed.of(EngineFailed("The engine stopped."))], pause_s=0.5
    ):
        with console() as (out, file):
            status = await recaption_prompt(AsyncClient(gateway.url), "a fox", out)
    assert status == 1
    assert "The engine stopped. (engine_failed)" in file.getvalue()


async def test_a_refusal_contains_the_detail_of_the_service(gateway: Served, clip: Path) -> None:
    with console() as (out, _):
        with pytest.raises(RequestFailed, match=r"interval_s.*invalid_option"):
            await caption_video(AsyncClient(gateway.url), str(clip), {"interval_s": 1000}, out)
        with pytest.raises(RequestFailed, match="url_forbidden"):
            await caption_video(AsyncClient(gateway.url), "http://127.0.0.1/clip.mp4", {}, out)
        with pytest.raises(RequestFailed, match=r"not_a_video|unsupported_media"):
            await caption_video(AsyncClient(gateway.url), __file__, {}, out)
        with pytest.raises(RequestFailed, match="cannot read /no/such: No such file"):
            await caption_video(AsyncClient(gateway.url), "/no/such", {}, out)
        with pytest.raises(RequestFailed, match=r"cannot reach http://127\.0\.0\.1:9"):
            await recaption_prompt(AsyncClient("http://127.0.0.1:9"), "a fox", out)


def sse(seq: int, event: Event) -> bytes:
    data = present_event_data("cap_1", event.type, json.dumps(event.data()))
    return f"id: {seq}\nevent: {event.type}\ndata: {data}\n\n".encode()


class BrokenStream(httpx.AsyncByteStream):
    """A response body whose connection breaks after these bytes."""

    def __init__(self, *parts: bytes) -> None:
        self.parts = parts

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self.parts:
            yield part
        raise httpx.ReadError("connection reset")


async def test_following_resumes_after_the_last_event_received(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "RECONNECT_AFTER_S", 0)
    events = video_events("cap_1")
    last_event_ids: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        last_event_ids.append(request.headers.get("last-event-id"))
        after = int(last_event_ids[-1] or 0)
        parts = [sse(seq, event) for seq, event in enumerate(events, 1) if after < seq <= after + 4]
        half = sse(after + 5, events[after + 4])[:-9] if after + 4 < len(events) else b""
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=BrokenStream(*parts, half))

    async with AsyncClient("http://service", transport=httpx.MockTransport(answer)) as client:
        got = [event async for event in client.follow("cap_1")]
    assert [event.type for event in got] == [event.type for event in events]
    for received, sent in zip(got, events, strict=True):
        data = present_event_data("cap_1", sent.type, json.dumps(sent.data()))
        assert received.model_dump(mode="json", exclude={"type"}, exclude_none=True) == json.loads(data)
    assert last_event_ids == [None, "4", "8"]


async def test_following_fails_if_the_service_stays_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "RECONNECT_AFTER_S", 0)

    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    async with AsyncClient("http://service", transport=httpx.MockTransport(answer)) as client:
        with pytest.raises(RequestFailed, match="lost the connection"):
            await asyncio.wait_for(anext(aiter(client.follow("cap_1"))), 10)


async def test_events_of_an_unknown_type_are_skipped() -> None:
    stream = b"id: 1\nevent: news\ndata: {}\n\n" + sse(
        2, Failed(error=ErrorInfo(code="x", detail="y", retryable=False))
    )

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=stream)

    async with AsyncClient("http://service", transport=httpx.MockTransport(answer)) as client:
        assert [event.type async for event in client.follow("cap_1")] == ["failed"]


@pytest.mark.parametrize(
    "answer", [httpx.Response(200, text="hello"), httpx.Response(200, json=[]), httpx.Response(500)]
)
async def test_another_server_is_recognised(answer: httpx.Response) -> None:
    async with AsyncClient("http://service", transport=httpx.MockTransport(lambda _: answer)) as client:
        with pytest.raises(RequestFailed, match=r"not a sharecap service|500 Internal Server Error"):
            await client.submit_recaption("a fox")


async def test_a_new_attempt_discards_unfinished_text(gateway: Served, worker: ScriptedWorker) -> None:
    def script(job_id: str) -> list[Event]:
        start, *rest = video_events(job_id)
        half = Delta(of="differential", keyframe=0, text="A dark tri")
        return [start, half, Started(attempt=2), *rest]

    async with working(worker, script):
        with console() as (out, file):
            status = await recaption_prompt(AsyncClient(gateway.url), "a fox", out)
    assert status == 0
    assert "dark" not in file.getvalue()


async def test_texts_that_were_cut_off_are_marked(gateway: Served, worker: ScriptedWorker) -> None:
    def script(_: str) -> list[Event]:
        start, end = Started(attempt=1), Completed(usage=Usage(), timings_s=Timings())
        differential = Differential(keyframe=0, time_s=0, text="A red", finish_reason="length")
        return [start, differential, Caption(text="A red star.", finish_reason="stop"), end]

    async with working(worker, script):
        with console() as (out, file):
            await recaption_prompt(AsyncClient(gateway.url), "a star", out)
    assert "0.00 s  A red (cut off at max_tokens)\n" in file.getvalue()
    assert "caption  A red star.\n" in file.getvalue()


def test_control_characters_are_replaced() -> None:
    assert printable("a\x1b[2Jb\n\u202ec") == "a�[2Jb\n�c"
    event = Differential(keyframe=0, time_s=0, text="[red]x[/red]")
    assert printable(event.text) == event.text
