"""Webhooks: signed, retried for a day, not lost with a gateway, and not delayed by other receivers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError
from redis.exceptions import ConnectionError as RedisConnectionError
from standardwebhooks import Webhook

from service.contract.errors import EngineFailed
from service.contract.events import Event, Failed, Started
from service.contract.jobs import JobKind, RecaptionOptions, Record, new_job_id
from service.contract.store.keys import WEBHOOK_TRIES, WEBHOOKS, job_key
from service.contract.store.store import Store
from service.metrics import Metrics
from service.settings import Settings
from service.upkeep import webhook_queue, webhook_sender, webhooks
from service.upkeep.webhook_sender import WebhookSender
from service.upkeep.webhooks import Webhooks
from tests.hostile_server import Answer, HostileServer, hostile_server, raw, redirect, status
from tests.service.intake.test_uploads import nothing_stored, problem
from tests.service.scripted import ScriptedWorker, Serve, eventually, recaption_events

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLD_SECRET = "whsec_" + "b2xk" * 8
CreateJob = Callable[..., Any]


@pytest.fixture(autouse=True)
def frequent_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "CHECK_EVERY_S", 0.1)
    monkeypatch.setattr(webhooks, "CHECK_AGAIN_S", 0.01)
    monkeypatch.setattr(webhook_queue, "UNFINISHED_AGAIN_S", 0.1)


@pytest.fixture
async def receiver() -> AsyncIterator[HostileServer]:
    async with hostile_server() as served:
        served.answers["/"] = status(204)
        yield served


@asynccontextmanager
async def delivering(store: Store, *receivers: HostileServer, gateways: int = 1) -> AsyncIterator[list[Metrics]]:
    """Run the webhook task of `gateways` gateways; yield the metrics of each."""
    settings = Settings(allowed_hosts=",".join(receiver.hosts for receiver in receivers))
    sender = WebhookSender(SecretStr(SECRET), settings.allowed_hosts)
    metrics = [Metrics() for _ in range(gateways)]
    tasks = [asyncio.create_task(Webhooks(store, sender, each).run()) for each in metrics]
    try:
        yield metrics
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def create_job(store: Store, worker: ScriptedWorker) -> CreateJob:
    """`await create_job(url, events=…)` creates a job with a webhook and appends `events`; by default it completes."""

    async def create(url: str, events: Callable[[str], list[Event]] = recaption_events) -> str:
        options = RecaptionOptions(prompt="a fox", webhook_url=url)
        record = Record(id=new_job_id(), kind=JobKind.RECAPTION, options=options, created_at=datetime.now(UTC))
        assert await store.create(record)
        await worker.append(await worker.claim(record.id), *events(record.id))
        return record.id

    return create


async def until_queue_is_empty(store: Store) -> None:
    """Wait until no webhook is pending."""

    async def empty() -> bool:
        return not await store.redis.exists(WEBHOOKS, WEBHOOK_TRIES)

    await eventually(empty)


def verified(request: tuple[bytes, bytes]) -> dict[str, Any]:
    """Verify the signature as a receiver does; return the fields of the body, and the message id as `id`."""
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
async def test_end_of_job_sends_a_signed_webhook(
    serve: Serve, receiver: HostileServer, worker: ScriptedWorker, events: Any, kind: str
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
        await until_queue_is_empty(worker.store)
        job = (await gateway.client.get(f"/captions/{job_id}")).json()
    (request,) = receiver.requests
    assert request[0].startswith(b"POST / HTTP/1.1\r\n")
    assert verified(request) == {"id": f"msg_{job_id}", "type": kind, "timestamp": job["finished_at"], "data": job}


async def test_cancelled_job_sends_a_webhook_signed_with_both_secrets(
    serve: Serve, receiver: HostileServer, store: Store
) -> None:
    async with serve(webhook_secret=f"{OLD_SECRET} {SECRET}", allowed_hosts=receiver.hosts) as gateway:
        body = {"url": "https://files.example/a.mp4", "webhook_url": receiver.url("/")}
        job_id = (await gateway.client.post("/captions", json=body)).json()["id"]
        await gateway.client.post(f"/captions/{job_id}/cancel")
        await until_queue_is_empty(store)
    (request,) = receiver.requests
    assert verified(request)["type"] == "job.cancelled"
    assert request[0].count(b"v1,") == 2


async def test_failed_delivery_is_retried_with_the_same_request(
    store: Store, receiver: HostileServer, create_job: CreateJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_queue, "PAUSES_S", (0.3,) * 9)
    monkeypatch.setattr(webhook_sender, "SEND_TIMEOUT_S", 0.2)
    async with hostile_server() as canary:

        async def silence(writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(5)

        script = [status(500), raw(""), redirect(canary.url("/")), silence, status(202)]
        receiver.answers["/"] = one_after_another(script)
        async with delivering(store, receiver) as (metrics,):
            job_id = await create_job(receiver.url("/"))
            await until_queue_is_empty(store)
            await asyncio.sleep(0.5)
        assert canary.connections == 0
    assert len(receiver.requests) == 5
    assert {verified(request)["id"] for request in receiver.requests} == {f"msg_{job_id}"}
    assert len({body for _, body in receiver.requests}) == 1
    outcomes = {
        s.labels["outcome"]: s.value for s in next(iter(metrics.webhooks.collect())).samples if "total" in s.name
    }
    assert outcomes == {"failed": 4, "delivered": 1}


def one_after_another(script: list[Answer]) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        await script.pop(0)(writer)

    return answer


async def test_status_410_ends_delivery(store: Store, receiver: HostileServer, create_job: CreateJob) -> None:
    receiver.answers["/"] = status(410)
    async with delivering(store, receiver):
        await create_job(receiver.url("/"))
        await until_queue_is_empty(store)
    assert len(receiver.requests) == 1


async def test_delivery_is_given_up_after_the_last_try(
    store: Store, receiver: HostileServer, create_job: CreateJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_queue, "PAUSES_S", (0.1, 0.1, 0.1))
    receiver.answers["/"] = status(500)
    async with delivering(store, receiver):
        await create_job(receiver.url("/"))
        await until_queue_is_empty(store)
    assert len(receiver.requests) == 3


def test_tries_are_spread_over_a_day() -> None:
    *pauses, last = webhook_queue.PAUSES_S
    assert sum(pauses) == 24 * 3600
    assert pauses == sorted(pauses)
    assert min(*pauses, last) >= 2 * webhook_sender.SEND_TIMEOUT_S


async def test_jobs_that_end_while_no_gateway_runs_are_delivered_later(
    store: Store, receiver: HostileServer, create_job: CreateJob
) -> None:
    async with delivering(store, receiver):
        cancelled = await create_job(receiver.url("/"), lambda _: [Started(attempt=1)])
        await asyncio.sleep(0.2)
    await store.cancel(cancelled)
    await store.redis.hset(job_key(cancelled), "until", 1)
    await store.cancel(cancelled)
    completed = await create_job(receiver.url("/"))
    assert receiver.requests == []
    async with delivering(store, receiver):
        await until_queue_is_empty(store)
    assert {verified(request)["data"]["id"] for request in receiver.requests} == {cancelled, completed}


async def test_delivery_interrupted_by_gateway_stop_is_repeated(
    store: Store, receiver: HostileServer, create_job: CreateJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_queue, "PAUSES_S", (0.5,) * 3)
    hanging = asyncio.Event()

    async def hang(writer: asyncio.StreamWriter) -> None:
        hanging.set()
        await asyncio.sleep(5)

    receiver.answers["/"] = one_after_another([hang, status(200)])
    async with delivering(store, receiver):
        await create_job(receiver.url("/"))
        async with asyncio.timeout(5):
            await hanging.wait()
    async with delivering(store, receiver):
        await until_queue_is_empty(store)
    first, second = (verified(request) for request in receiver.requests)
    assert first == second


async def test_several_gateways_deliver_each_webhook_once(
    store: Store, receiver: HostileServer, create_job: CreateJob
) -> None:
    async with delivering(store, receiver, gateways=3):
        created = [await create_job(receiver.url("/")) for _ in range(60)]
        await until_queue_is_empty(store)
    delivered = [verified(request)["data"]["id"] for request in receiver.requests]
    assert sorted(delivered) == sorted(created)


async def test_unresponsive_receiver_does_not_delay_others(
    store: Store, receiver: HostileServer, create_job: CreateJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_queue, "JOBS_PER_CHECK", 10)

    async def silence(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    async with hostile_server("127.0.0.2") as dead:
        dead.answers["/"] = silence
        for _ in range(40):
            await create_job(dead.url("/"))
        async with delivering(store, dead, receiver):
            async with asyncio.timeout(5):
                while dead.open < webhooks.PARALLEL_PER_HOST:
                    await asyncio.sleep(0.01)
            created = [await create_job(receiver.url("/")) for _ in range(20)]
            async with asyncio.timeout(5):
                while await store.redis.zcard(WEBHOOKS) > 40:  # a webhook is removed after its answer has arrived
                    await asyncio.sleep(0.01)
        assert dead.max_open == webhooks.PARALLEL_PER_HOST
    assert len(receiver.requests) == len(created) and await store.redis.zcard(WEBHOOKS) == 40


async def test_deleted_job_sends_no_webhook(store: Store, receiver: HostileServer, create_job: CreateJob) -> None:
    job_id = await create_job(receiver.url("/"))
    await store.delete(job_id)
    async with delivering(store, receiver):
        await until_queue_is_empty(store)
    assert receiver.requests == []


@pytest.mark.parametrize("record", ["{", '{"options": {}}'])
async def test_unreadable_record_does_not_stop_other_webhooks(
    store: Store, receiver: HostileServer, create_job: CreateJob, monkeypatch: pytest.MonkeyPatch, record: str
) -> None:
    monkeypatch.setattr(webhook_queue, "PAUSES_S", (0.1, 0.1))
    await store.redis.hset(job_key(await create_job(receiver.url("/"))), "record", record)
    readable = await create_job(receiver.url("/"))
    async with delivering(store, receiver):
        await until_queue_is_empty(store)
    assert [verified(request)["data"]["id"] for request in receiver.requests] == [readable]


async def test_job_without_webhook_is_not_queued(serve: Serve, store: Store) -> None:
    async with serve(webhook_secret=SECRET) as gateway:
        assert (await gateway.client.post("/captions", json={"url": "https://files.example/a"})).status_code == 202
        assert not await store.redis.exists(WEBHOOKS)


async def test_webhooks_need_a_secret_and_a_public_address(serve: Serve, store: Store) -> None:
    body = {"url": "https://files.example/a.mp4", "webhook_url": "https://hooks.example/"}
    async with serve() as gateway:
        answer = await gateway.client.post("/captions", json=body)
        assert "WEBHOOK_SECRET" in problem(answer, 422, "invalid_option")
        await nothing_stored(gateway, store)
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
        await nothing_stored(gateway, store)
        assert (await gateway.client.post("/captions", json=body)).status_code == 202


@pytest.mark.parametrize("secret", ["whsec_", "whsec_c2hvcnQ=", "hunter2", SECRET.removeprefix("whsec_"), f"{SECRET}*"])
def test_malformed_secret_is_refused_and_not_shown(secret: str) -> None:
    with pytest.raises(ValidationError, match="24 to 64 random bytes") as refused:
        Settings(webhook_secret=secret)
    assert secret not in str(refused.value) or secret == "whsec_"
    assert Settings(webhook_secret="").webhook_secret is None


async def test_lost_redis_replies_do_not_stop_delivery(
    store: Store, receiver: HostileServer, create_job: CreateJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    evalsha, replies_to_lose = store.redis.evalsha, 3

    async def losing_replies(*args: Any, **options: Any) -> Any:
        nonlocal replies_to_lose
        reply = await evalsha(*args, **options)
        if replies_to_lose:
            replies_to_lose -= 1
            raise RedisConnectionError("the reply was lost")
        return reply

    await create_job(receiver.url("/"))
    monkeypatch.setattr(store.redis, "evalsha", losing_replies)
    monkeypatch.setattr(webhook_queue, "PAUSES_S", (0.2,) * 5)
    async with delivering(store, receiver):
        await until_queue_is_empty(store)
    assert len(receiver.requests) == 1
    assert replies_to_lose == 0
