"""The gateway: the FastAPI application, and the process that serves it."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator
from importlib.metadata import PackageNotFoundError, version
from types import FrameType

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError
from redis.exceptions import RedisError

from service import problems
from service.access import authentication as auth
from service.contract.sandbox.probe import NoSandbox, check_sandbox
from service.dependencies import open_gateway
from service.metrics import CountResponses, Metrics
from service.routes import captions, clips, events, health, page, recaption
from service.settings import Settings
from service.streaming.backpressure import bounded

CLOSING_S = 5
EX_CONFIG = 78

log = logging.getLogger(__name__)


def create_app(settings: Settings) -> FastAPI:
    """Return the application; what it holds is made when it starts and let go when it stops."""
    metrics = Metrics()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_gateway(settings, metrics) as gateway:
            app.state.gateway = gateway
            yield

    app = FastAPI(
        title="sharecap", summary="Dense, temporally exact video captions", version=_version(), lifespan=lifespan
    )
    for module in (captions, clips, events, recaption, health, page):
        app.include_router(module.router)
    problems.install(app)
    auth.install(app)
    app.add_middleware(CountResponses, metrics=metrics)
    return app


class Server(uvicorn.Server):
    """uvicorn, ending event streams and waiting requests first when it is told to stop."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        self._app = app
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                http=bounded(settings.unread_s),
                lifespan="on",
                server_header=False,
                timeout_graceful_shutdown=CLOSING_S,
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if hasattr(self._app.state, "gateway"):
            self._app.state.gateway.follower.close()
        await super().shutdown(sockets)


def main(settings: Settings | None = None) -> None:
    """Serve until SIGTERM or SIGINT; then end all streams and exit with 0."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(name)s: %(message)s")
    try:
        settings = settings or Settings()
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            name = ".".join(str(place) for place in problem["loc"]).upper()
            print(f"{name}: {problem['msg']}" if name else problem["msg"], file=sys.stderr)
        sys.exit(EX_CONFIG)
    if settings.exposed and not asyncio.run(_some_key_opens(settings)):
        print(
            f"HOST={settings.host} would let anyone on the network in, for there is no API key: make one with "
            "`sharecap keys add NAME`, or keep HOST=127.0.0.1, or set ALLOW_PUBLIC_BIND=true where something else "
            "keeps strangers out",
            file=sys.stderr,
        )
        sys.exit(EX_CONFIG)
    try:
        check_sandbox()
    except NoSandbox as error:
        print(error, file=sys.stderr)
        sys.exit(EX_CONFIG)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
    Server(create_app(settings), settings).run()


async def _some_key_opens(settings: Settings) -> bool:
    """Whether any API key lets somebody in; where Redis cannot say, all is well: every request needs one anyway."""
    try:
        return await auth.some_key_opens(settings)
    except (RedisError, OSError) as error:
        log.warning("whether there is an API key is not known, for Redis cannot be reached: %s", error)
        return True


def _exit(number: int, frame: FrameType | None) -> None:
    """uvicorn raises the signal that stopped it once more when all is closed; that is no failure."""
    sys.exit(0)


def _version() -> str:
    try:
        return version("sharecap")
    except PackageNotFoundError:
        return "0"
