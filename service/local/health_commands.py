"""`sharecap health`: health checks of a gateway and of a worker, for containers and supervisors.

Each check prints one line and exits with status 0 (healthy) or 1.
"""

import asyncio
import socket
from typing import Annotated

import httpx
import typer
from redis.exceptions import RedisError
from rich.console import Console
from sharecap_client.cli.errors import CommandFailed

from service.contract.settings import RedisSettings
from service.contract.store.connection import connect
from service.contract.store.store import Store
from service.local.cli_options import DEFAULT_PORT, Port, RedisUrl
from service.local.up import LOCAL_HOST

HEALTH_TIMEOUT_S = 5.0

app = typer.Typer(help="Check whether a gateway or a worker is healthy.", no_args_is_help=True)
out = Console(highlight=False)


@app.command()
def gateway(
    *,
    port: Port = DEFAULT_PORT,
) -> None:
    """Check that the gateway on this host answers requests."""
    try:
        httpx.get(f"http://{LOCAL_HOST}:{port}/healthz", timeout=HEALTH_TIMEOUT_S, trust_env=False).raise_for_status()
    except httpx.HTTPError as error:
        raise CommandFailed(f"the gateway on port {port} is not healthy: {error}") from None
    out.print(f"the gateway on port {port} answers")


@app.command()
def worker(
    *,
    redis_url: RedisUrl = None,
    host: Annotated[str, typer.Option(help="Host name of the worker. Default: this host.")] = "",
) -> None:
    """Check that a worker on this host has loaded its model and has a live card in Redis."""
    host = host or socket.gethostname()
    try:
        live = asyncio.run(_live_workers(redis_url or RedisSettings().redis_url, host))
    except (RedisError, OSError, ValueError) as error:
        raise CommandFailed(f"the Redis server does not answer: {error}") from None
    if not live:
        raise CommandFailed(f"host {host} has no live worker with a loaded model")
    out.print(f"live: {', '.join(live)}")


async def _live_workers(redis_url: str, host: str) -> list[str]:
    """Return the ids of the live workers on `host`."""
    async with connect(redis_url, socket_timeout=HEALTH_TIMEOUT_S) as redis:
        return [card.id for card in await Store(redis).workers() if card.host == host]
