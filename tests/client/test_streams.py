"""Event streams that break, stay silent or contain what this version does not know; servers that are not sharecap."""

import json
from collections.abc import AsyncIterator

import httpx
import pytest
from sharecap_client import AsyncClient, ServiceUnreachable
from sharecap_client import streams as subject
from sharecap_client.errors import UnexpectedAnswer

from service.contract.events import Event, Failed
from service.contract.jobs import ErrorInfo
from service.presentation import present_event_data
from tests.service.scripted import video_events


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
        got = [event async for event in client.events("cap_1")]
    assert [event.type for event in got] == [event.type for event in events]
    for received, sent in zip(got, events, strict=True):
        data = present_event_data("cap_1", sent.type, json.dumps(sent.data()))
        assert received.model_dump(mode="json", exclude={"type"}, exclude_none=True) == json.loads(data)
    assert last_event_ids == [None, "4", "8"]


async def test_following_fails_if_the_service_stays_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "RECONNECT_AFTER_S", 0)
    attempts = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=BrokenStream())
        raise httpx.ConnectError("refused")

    async with AsyncClient("http://service", transport=httpx.MockTransport(answer)) as client:
        with pytest.raises(ServiceUnreachable, match="lost the connection"):
            await anext(client.events("cap_1"))
    assert attempts == subject.MAX_RECONNECTS + 1


async def test_a_service_that_never_answered_is_reported_at_once() -> None:
    async with AsyncClient("http://127.0.0.1:9") as client:
        with pytest.raises(ServiceUnreachable, match=r"cannot reach http://127\.0\.0\.1:9"):
            await anext(client.events("cap_1"))


async def test_events_of_an_unknown_type_are_skipped() -> None:
    stream = b"id: 1\nevent: news\ndata: {}\n\n" + sse(
        2, Failed(error=ErrorInfo(code="x", detail="y", retryable=False))
    )

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=stream)

    async with AsyncClient("http://service", transport=httpx.MockTransport(answer)) as client:
        assert [event.type async for event in client.events("cap_1")] == ["failed"]


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="hello"),
        httpx.Response(200, json=[]),
        httpx.Response(200, json={"id": "x"}),
        httpx.Response(500),
    ],
)
async def test_another_server_is_recognised(answer: httpx.Response) -> None:
    async with AsyncClient("http://service", transport=httpx.MockTransport(lambda _: answer)) as client:
        with pytest.raises(UnexpectedAnswer, match=r"not a sharecap service|500 Internal Server Error"):
            await client.recaption("a fox")
        with pytest.raises(UnexpectedAnswer, match=r"not a sharecap service|500 Internal Server Error"):
            await anext(client.events("cap_1"))
