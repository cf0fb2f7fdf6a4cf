"""Webhooks: signed, tried again for as long as it takes, lost by nobody's end, held up by nobody."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError
from redis.exceptions import ConnectionError as RedisConnectionError
from standardwebhooks import Webhook

from service.contract.errors import EngineFailed
from service.contract.events import Event, Failed, Started
from service.contract.jobs import JobKind, RecaptionOptions, Record, new_job_id
from service.contract.store.store import Store
from service.metrics import Metrics
from service.settings import Settings
from service.upkeep import webhooks
from service.upkeep.webhooks import TRIES, WEBHOOKS, Webhooks
from tests.rogue import Answer, Rogue, leads_to, rogue, says, status
from tests.service.intake.test_uploads import nothing_kept, problem
from tests.service.scripted import ScriptedWorker, Serve, eventually, recaption_events

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLD_SECRET = "whsec_" + "b2xk" * 8
Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(webhooks, "LOOK_AGAIN_S", 0.01)
    monkeypatch.setattr(webhooks, "UNFINISHED_AGAIN_S", 0.1)


@pytest.fixture
async def receiver() -> AsyncIterator[Rogue]:
    async with rogue() as served:
        served.answers["/"] = status(204)
        yield served


@asynccontextmanager
async def delivering(store: Store, *receivers: Rogue, gateways: int = 1) -> AsyncIterator[list[Metrics]]:
    """The part of some gateways that delivers."""
    hosts = ",".join(receiver.hosts for receiver in receivers)
    settings = Settings(webhook_secret=SECRET, allowed_hosts=hosts)
    metrics = [Metrics() for _ in range(gateways)]
    tasks = [asyncio.create_task(Webhooks(store, settings, each).run()) for each in metrics]
    try:
        yield metrics
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def make(store: Store, worker: ScriptedWorker) -> Make:
    """`await make(url, events=…)`: a job with a webhook, at which a worker has done that much; by default all."""

    async def making(url: str, events: Callable[[str], list[Event]] = recaption_events) -> str:
        options = RecaptionOptions(prompt="a fox", webhook_url=url)
        record = Record(id=new_job_id(), kind=JobKind.RECAPTION, options=options, created_at=datetime.now(UTC))
        assert await store.create(record)
        await worker.append(await worker.claim(record.id), *events(record.id))
        return record.id

    return making


async def settled(store: Store) -> None:
    """Wait until nothing is to be delivered any more."""

    async def empty() -> bool:
        return not await store.redis.exists(WEBHOOKS, TRIES)

    await eventually(empty)


def verified(request: tuple[bytes, bytes]) -> dict[str, Any]:
    """Check the request as a receiver does; return its body's object, and its id."""
    head, body = request
    fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:] if line)
    message = Webhook(SECRET).verify(body, fields)
    assert fields["Content-Type"] == "application/json"
    return {"id": fields["webhook-id"], **message}


@pytest.mark.parametrize(
    ("events", "kind"),
    [
        (recaption_events, "job.completed"),
        (lambda _: [Started(attempt=1), Failed.of(EngineFailed("It stopped."))], "job.failed"),
    ],
)
async def test_the_jobs_end_is_told_signed(
    serve: Serve, receiver: Rogue, worker: ScriptedWorker, events: Any, kind: str
) -> None:
    async with serve(webhook_secret=SECRET, allowed_hosts=receiver.hosts) as gateway:
        body = {"prompt": "a fox", "webhook_url": receiver.url("/")}
        job_id = (await gateway.client.post("/recaption", json=body, headers={"Prefer": "wait=0"})).json()["id"]
        lease = await worker.claim(job_id)
        script = events(job_id)
        await worker.append(lease, *script[:-1])
        await asyncio.sleep(0.4)
        assert receiver.requests == []
        await worker.append(lease, script[-1])
        await settled(worker.store)
        job = (await gateway.client.get(f"/captions/{job_id}")).json()
    (request,) = receiver.requests
    assert request[0].startswith(b"POST / HTTP/1.1\r\n")
    assert verified(request) == {"id": f"msg_{job_id}", "type": kind, "timestamp": job["finished_at"], "data": job}


async def test_a_cancelled_job_is_told_too(serve: Serve, receiver: Rogue, store: Store) -> None:
    async with serve(webhook_secret=f"{OLD_SECRET} {SECRET}", allowed_hosts=receiver.hosts) as gateway:
        body = {"url": "https://files.example/a.mp4", "webhook_url": receiver.url("/")}
        job_id = (await gateway.client.post("/captions", json=body)).json()["id"]
        await gateway.client.post(f"/captions/{job_id}/cancel")
        await settled(store)
    (request,) = receiver.requests
    assert verified(request)["type"] == "job.cancelled"
    assert request[0].count(b"v1,") == 2


async def test_what_is_not_taken_is_sent_again_the_same(
    store: Store, receiver: Rogue, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "AGAIN_AFTER_S", (0.3,) * 9)
    monkeypatch.setattr(webhooks, "DELIVERY_S", 0.2)
    async with rogue() as canary:

        async def silence(writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(5)

        script = [status(500), says(""), leads_to(canary.url("/")), silence, status(202)]
        receiver.answers["/"] = one_after_another(script)
        async with delivering(store, receiver) as (metrics,):
            job_id = await make(receiver.url("/"))
            await settled(store)
            await asyncio.sleep(0.5)
        assert canary.connections == 0
    assert len(receiver.requests) == 5
    assert {verified(request)["id"] for request in receiver.requests} == {f"msg_{job_id}"}
    assert len({body for _, body in receiver.requests}) == 1
    counted = {
        s.labels["outcome"]: s.value for s in next(iter(metrics.webhooks.collect())).samples if "total" in s.name
    }
    assert counted == {"failed": 4, "delivered": 1}


def one_after_another(script: list[Answer]) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        await script.pop(0)(writer)

    return answer


async def test_a_receiver_that_is_gone_is_left_alone(store: Store, receiver: Rogue, make: Make) -> None:
    receiver.answers["/"] = status(410)
    async with delivering(store, receiver):
        await make(receiver.url("/"))
        await settled(store)
    assert len(receiver.requests) == 1


async def test_at_last_it_is_given_up(
    store: Store, receiver: Rogue, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "AGAIN_AFTER_S", (0.1, 0.1, 0.1))
    receiver.answers["/"] = status(500)
    async with delivering(store, receiver):
        await make(receiver.url("/"))
        await settled(store)
    assert len(receiver.requests) == 3


def test_the_tries_are_spread_over_a_day() -> None:
    *pauses, last = webhooks.AGAIN_AFTER_S
    assert sum(pauses) == 24 * 3600
    assert pauses == sorted(pauses)
    assert min(*pauses, last) >= 2 * webhooks.DELIVERY_S


async def test_what_ended_while_no_gateway_was_there_is_told(store: Store, receiver: Rogue, make: Make) -> None:
    async with delivering(store, receiver):
        open_one = await make(receiver.url("/"), lambda _: [Started(attempt=1)])
        await asyncio.sleep(0.2)
    await store.cancel(open_one)
    await store.redis.hset(f"sharecap:job:{open_one}", "until", 1)
    await store.cancel(open_one)
    ended_one = await make(receiver.url("/"))
    assert receiver.requests == []
    async with delivering(store, receiver):
        await settled(store)
    assert {verified(request)["data"]["id"] for request in receiver.requests} == {open_one, ended_one}


async def test_a_delivery_cut_off_by_the_gateways_end_is_made_again(
    store: Store, receiver: Rogue, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "AGAIN_AFTER_S", (0.5,) * 3)
    hanging = asyncio.Event()

    async def hang(writer: asyncio.StreamWriter) -> None:
        hanging.set()
        await asyncio.sleep(5)

    receiver.answers["/"] = one_after_another([hang, status(200)])
    async with delivering(store, receiver):
        await make(receiver.url("/"))
        async with asyncio.timeout(5):
            await hanging.wait()
    async with delivering(store, receiver):
        await settled(store)
    first, second = (verified(request) for request in receiver.requests)
    assert first == second


async def test_several_gateways_tell_each_end_once(store: Store, receiver: Rogue, make: Make) -> None:
    async with delivering(store, receiver, gateways=3):
        made = [await make(receiver.url("/")) for _ in range(60)]
        await settled(store)
    told = [verified(request)["data"]["id"] for request in receiver.requests]
    assert sorted(told) == sorted(made)


async def test_a_dead_receiver_holds_up_no_other(
    store: Store, receiver: Rogue, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "LOOKED_AT", 10)

    async def silence(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    async with rogue("127.0.0.2") as dead:
        dead.answers["/"] = silence
        for _ in range(40):
            await make(dead.url("/"))
        async with delivering(store, dead, receiver):
            async with asyncio.timeout(5):
                while dead.open < webhooks.AT_ONCE_PER_HOST:
                    await asyncio.sleep(0.01)
            made = [await make(receiver.url("/")) for _ in range(20)]
            async with asyncio.timeout(5):
                while len(receiver.requests) < len(made):
                    await asyncio.sleep(0.01)
        assert dead.most_open == webhooks.AT_ONCE_PER_HOST
    assert await store.redis.zcard(WEBHOOKS) == 40


async def test_a_deleted_job_is_not_told_of(store: Store, receiver: Rogue, make: Make) -> None:
    job_id = await make(receiver.url("/"))
    await store.delete(job_id)
    async with delivering(store, receiver):
        await settled(store)
    assert receiver.requests == []


async def test_a_job_without_a_webhook_costs_nothing(serve: Serve, store: Store) -> None:
    async with serve(webhook_secret=SECRET) as gateway:
        assert (await gateway.client.post("/captions", json={"url": "https://files.example/a"})).status_code == 202
        assert not await store.redis.exists(WEBHOOKS)


async def test_webhooks_need_a_secret_and_a_public_address(serve: Serve, store: Store) -> None:
    body = {"url": "https://files.example/a.mp4", "webhook_url": "https://hooks.example/"}
    async with serve() as gateway:
        answer = await gateway.client.post("/captions", json=body)
        assert "WEBHOOK_SECRET" in problem(answer, 422, "invalid_option")
        await nothing_kept(gateway, store)
    async with serve(webhook_secret=SECRET) as gateway:
        for url in (
            "http://127.0.0.1/",
            "http://[::ffff:10.0.0.1]/",
            "ftp://hooks.example/",
            "https://a:b@c.example",
            "http://xn--0.com/",
        ):
            answer = await gateway.client.post("/captions", json={**body, "webhook_url": url})
            problem(answer, 422, "url_forbidden")
        await nothing_kept(gateway, store)
        assert (await gateway.client.post("/captions", json=body)).status_code == 202


@pytest.mark.parametrize("secret", ["whsec_", "whsec_c2hvcnQ=", "hunter2", SECRET.removeprefix("whsec_"), f"{SECRET}*"])
def test_a_secret_that_is_none_is_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(ValidationError, match="24 to 64 random bytes") as refused:
        Settings(webhook_secret=secret)
    assert secret not in str(refused.value) or secret == "whsec_"
    assert Settings(webhook_secret="").webhook_secret is None


async def test_redis_may_go_away(store: Store, receiver: Rogue, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate, lost = store.redis.evalsha, [1, 1, 1]

    async def losing(*args: Any, **more: Any) -> Any:
        answer = await evaluate(*args, **more)
        if lost:
            lost.pop()
            raise RedisConnectionError("the reply was lost")
        return answer

    await make(receiver.url("/"))
    monkeypatch.setattr(store.redis, "evalsha", losing)
    monkeypatch.setattr(webhooks, "AGAIN_AFTER_S", (0.2,) * 5)
    async with delivering(store, receiver):
        await settled(store)
    assert len(receiver.requests) == 1
    assert lost == []
