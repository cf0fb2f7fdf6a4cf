"""The gateway: the FastAPI application and the process that serves it."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from types import FrameType
from typing import NoReturn

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from redis.exceptions import RedisError
from starlette.middleware.cors import CORSMiddleware

from service import problems
from service.access import authentication
from service.access.job_tokens import hide_tokens
from service.connections.descriptors import connections_that_fit, listen_backlog, raise_descriptor_limit
from service.connections.protocol import BoundedProtocol
from service.connections.table import ConnectionTable
from service.contract.sandbox.probe import NoSandbox, check_sandbox
from service.contract.storage.private import keep_files_private
from service.dependencies import open_gateway
from service.metrics import CountResponses, Metrics
from service.routes import captions, clips, event_schemas, events, health, page, playback, recaption, trailing_slash
from service.settings import Settings

SHUTDOWN_TIMEOUT_S = 5
CHECK_EVERY_TICKS = 5
"""How often slow connections are looked for, in ticks of 0.1 s."""

CORS_REQUEST_HEADERS = ["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "Prefer", "Range"]
CORS_RESPONSE_HEADERS = ["Location", "Retry-After", "Idempotency-Replayed", "Preference-Applied", "Content-Range"]
DESCRIPTION = (
    "Errors are application/problem+json with a stable code; each route lists its own. Besides those, any request can "
    "be answered with 404 not_found or 405 method_not_allowed (no such path or method), and with 408 request_timeout "
    "or 431 head_too_large, after which the connection is closed."
)

log = logging.getLogger(__name__)


def create_app(settings: Settings) -> FastAPI:
    """Return the application. Its resources are created when it starts and released when it stops."""
    metrics = Metrics()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_gateway(settings, metrics) as gateway:
            app.state.gateway = gateway
            yield

    app = FastAPI(
        title="sharecap",
        summary="Dense, temporally exact video captions",
        description=DESCRIPTION,
        version=_version(),
        lifespan=lifespan,
        docs_url=None,  # `service.routes.page` serves /docs, without files of other hosts
        redoc_url=None,
    )
    for module in (captions, clips, events, playback, recaption, health, page):
        app.include_router(module.router)
    trailing_slash.install(app)
    problems.install(app)
    event_schemas.install(app)
    authentication.install(app)
    _allow_origins(app, settings)
    app.add_middleware(CountResponses, metrics=metrics)
    app.state.metrics = metrics
    return app


def _allow_origins(app: FastAPI, settings: Settings) -> None:
    """Let scripts of the sites in `CORS_ORIGINS` read responses. Runs before authentication: a preflight has no key."""
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(settings.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=CORS_REQUEST_HEADERS,
            expose_headers=CORS_RESPONSE_HEADERS,
        )


class Server(uvicorn.Server):
    """uvicorn server that, when it stops, first ends event streams and requests that wait for a job."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        self._app = app
        most = min(settings.max_connections, connections_that_fit())
        most_per_client = min(settings.max_connections_per_address, most // 2)
        self._connections = ConnectionTable(most, most_per_client, app.state.metrics.closed_connections)
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                http=partial(BoundedProtocol, settings=settings, table=self._connections),  # type: ignore[arg-type]
                ws="none",
                lifespan="on",
                server_header=False,
                proxy_headers=bool(settings.trusted_proxies),
                forwarded_allow_ips=[str(network) for network in settings.trusted_proxies],
                backlog=listen_backlog(),
                timeout_keep_alive=settings.idle_timeout_s,
                timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
            )
        )
        logging.getLogger("uvicorn.access").addFilter(hide_tokens)

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second."""
        if counter % CHECK_EVERY_TICKS == 0:
            self._connections.check(asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if hasattr(self._app.state, "gateway"):
            self._app.state.gateway.follower.close()
        await super().shutdown(sockets)


def main(settings: Settings | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then end all streams and exit with status 0."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(name)s: %(message)s")
    keep_files_private()
    raise_descriptor_limit()
    settings = settings or _settings_from_environment()
    if settings.exposed and not asyncio.run(_has_valid_key(settings)):
        _exit_with_configuration_error(
            f"HOST={settings.host} would open the service to the network, because no API key exists. Create a key "
            "with `sharecap keys add NAME --data-dir DIR` or with REDIS_URL, use HOST=127.0.0.1, or set "
            "ALLOW_PUBLIC_BIND=true if something else restricts access"
        )
    try:
        check_sandbox()
    except NoSandbox as error:
        _exit_with_configuration_error(str(error))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
    Server(create_app(settings), settings).run()


def _settings_from_environment() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        _exit_with_configuration_error("\n".join(_describe(details) for details in error.errors(include_url=False)))


def _describe(details: ErrorDetails) -> str:
    name = ".".join(str(part) for part in details["loc"]).upper()
    return f"{name}: {details['msg']}" if name else details["msg"]


def _exit_with_configuration_error(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(os.EX_CONFIG)


async def _has_valid_key(settings: Settings) -> bool:
    """Return whether a valid API key exists. Returns True if Redis is unreachable: requests need a key in any case."""
    try:
        return await authentication.has_valid_key(settings)
    except (RedisError, OSError) as error:
        log.warning("cannot check for API keys, because Redis is unreachable: %s", error)
        return True


def _exit(number: int, frame: FrameType | None) -> None:
    """Exit with status 0. After a clean shutdown, uvicorn raises the signal that stopped it again."""
    sys.exit(0)


def _version() -> str:
    try:
        return version("sharecap")
    except PackageNotFoundError:
        return "0"
