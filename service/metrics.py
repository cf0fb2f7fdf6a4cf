"""What Prometheus is told: this process's requests and streams, and what all of them share in Redis."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.contract.jobs import JobKind
from service.contract.store.store import LEASES, QUEUED, Store
from service.streaming.follower import Follower


class Metrics:
    """The numbers of one gateway; those of the whole service are read when they are asked for."""

    def __init__(self) -> None:
        self.registry = all_of = CollectorRegistry()
        self.responses = Counter(
            "sharecap_http_responses", "Answers begun", ["method", "route", "status"], registry=all_of
        )
        self.seconds = Histogram(
            "sharecap_http_first_byte_seconds", "Time to the answer's head", ["method", "route"], registry=all_of
        )
        self.accepted = Counter("sharecap_jobs_accepted", "Jobs taken on", ["kind"], registry=all_of)
        self.upload_bytes = Counter("sharecap_upload_bytes", "Bytes of accepted videos", registry=all_of)
        self.webhooks = Counter("sharecap_webhooks", "Tries to deliver a webhook", ["outcome"], registry=all_of)
        self.streams = Gauge("sharecap_event_streams", "Clients following or waiting for a job", registry=all_of)
        self.jobs = Gauge("sharecap_jobs", "Jobs of the whole service that have not ended", ["state"], registry=all_of)
        self.workers = Gauge("sharecap_workers", "Live workers of the whole service", registry=all_of)
        self.slots = Gauge("sharecap_worker_slots", "Video slots of all live workers", registry=all_of)
        self.running = Gauge("sharecap_worker_slots_used", "Video slots in use", registry=all_of)
        for kind in JobKind:
            self.accepted.labels(kind.value)

    async def text(self, store: Store, follower: Follower) -> bytes:
        """Return all of it in Prometheus' text form; raise redis.RedisError where the shared part is out of reach."""
        cards = await store.workers()
        self.streams.set(follower.watchers)
        for state, key in (("queued", QUEUED), ("running", LEASES)):
            self.jobs.labels(state).set(await store.redis.zcard(key))
        self.workers.set(len(cards))
        self.slots.set(sum(card.slots for card in cards))
        self.running.set(sum(card.running for card in cards))
        return generate_latest(self.registry)


class CountResponses:
    """Counts every answer under its route, never under a path that a client made up."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, told = time.perf_counter(), False

        def count(status: int) -> None:
            nonlocal told
            told = True
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.responses.labels(scope["method"], route, status).inc()
            self._metrics.seconds.labels(scope["method"], route).observe(time.perf_counter() - begun)

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                count(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, counted)
        except Exception:
            if not told:
                count(500)
            raise
