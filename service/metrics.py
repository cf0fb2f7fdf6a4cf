"""Prometheus metrics: this gateway's requests and streams, and the state of the whole service as stored in Redis."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.contract.jobs import JobKind
from service.contract.store.keys import LEASES, QUEUED
from service.contract.store.store import Store
from service.streaming.follower import Follower


class Metrics:
    """The metrics of one gateway process. Gauges of the whole service are read from Redis on each scrape."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.responses = Counter(
            "sharecap_http_responses", "HTTP responses started", ["method", "route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "sharecap_http_first_byte_seconds", "Time to the response headers", ["method", "route"], registry=registry
        )
        self.accepted = Counter("sharecap_jobs_accepted", "Jobs accepted", ["kind"], registry=registry)
        self.upload_bytes = Counter("sharecap_upload_bytes", "Bytes of accepted videos", registry=registry)
        self.webhooks = Counter("sharecap_webhooks", "Webhook delivery tries", ["outcome"], registry=registry)
        self.streams = Gauge("sharecap_event_streams", "Clients following or waiting for a job", registry=registry)
        self.jobs = Gauge("sharecap_jobs", "Unfinished jobs of the whole service", ["state"], registry=registry)
        self.workers = Gauge("sharecap_workers", "Live workers of the whole service", registry=registry)
        self.dead_engines = Gauge(
            "sharecap_dead_engines", "Workers whose engine ended in the last two minutes", ["reason"], registry=registry
        )
        self.slots = Gauge("sharecap_worker_slots", "Video slots of all live workers", registry=registry)
        self.running = Gauge("sharecap_worker_slots_used", "Video slots in use", registry=registry)
        self.closed_connections = Counter(
            "sharecap_connections_closed", "Connections closed because of a bound", ["reason"], registry=registry
        )
        for kind in JobKind:
            self.accepted.labels(kind.value)

    async def text(self, store: Store, follower: Follower) -> bytes:
        """Return all metrics in the Prometheus text format. Raises redis.RedisError if Redis cannot be reached."""
        all_cards = await store.worker_cards()
        cards = [card for card in all_cards if card.engine == "alive"]
        self.streams.set(follower.watchers)
        for state, key in (("queued", QUEUED), ("running", LEASES)):
            self.jobs.labels(state).set(await store.redis.zcard(key))
        self.workers.set(len(cards))
        for reason in ("died", "stalled"):
            self.dead_engines.labels(reason).set(sum(card.engine == reason for card in all_cards))
        self.slots.set(sum(card.slots for card in cards))
        self.running.set(sum(card.running for card in cards))
        return generate_latest(self.registry)


class CountResponses:
    """ASGI middleware that counts responses by route template, so that clients cannot create labels."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, counted = time.perf_counter(), False

        async def counting_send(message: Message) -> None:
            nonlocal counted
            if message["type"] == "http.response.start":
                counted = True
                self._count(scope, message["status"], start)
            await send(message)

        try:
            await self._app(scope, receive, counting_send)
        except Exception:
            if not counted:
                self._count(scope, 500, start)
            raise

    def _count(self, scope: Scope, status: int, start: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        self._metrics.responses.labels(scope["method"], route, status).inc()
        self._metrics.seconds.labels(scope["method"], route).observe(time.perf_counter() - start)
