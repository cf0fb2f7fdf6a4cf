"""`sharecap keys`: create, list and revoke API keys, in the service's Redis or the data directory's Valkey."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from redis.exceptions import RedisError
from rich.console import Console
from rich.table import Table

from service.access.api_keys import ApiKey, ApiKeyStore, KeyLimits
from service.contract.settings import configured_redis_url
from service.contract.store.connection import connect
from service.local.cli_options import DEFAULT_DATA_DIR, DataDir, EmbeddedOrRedisUrl
from service.local.start_checks import CannotStart
from service.local.up import embedded_valkey, has_valkey

T = TypeVar("T")
DEFAULTS = KeyLimits()
COLUMNS = ("id", "name", "created", "requests/min", "bytes/day", "jobs", "jobs/h", "stored bytes", "streams", "revoked")
WIDTH = 200
"""Width of the table in characters if the output is not a terminal."""

app = typer.Typer(help="Create, list and revoke API keys. The service need not be running.", no_args_is_help=True)
notes = Console(stderr=True, highlight=False)


@app.command()
def add(
    *,
    name: Annotated[str, typer.Argument(help="Name of the key's owner.")],
    requests_per_minute: Annotated[int, typer.Option(min=0, help="0 means unlimited.")] = DEFAULTS.requests_per_minute
    or 0,
    upload_bytes_per_day: Annotated[int, typer.Option(min=0, help="0 means unlimited.")] = DEFAULTS.upload_bytes_per_day
    or 0,
    jobs: Annotated[int, typer.Option(min=0, help="Unfinished jobs at a time; 0 means unlimited.")] = DEFAULTS.jobs
    or 0,
    jobs_per_hour: Annotated[int, typer.Option(min=0, help="New jobs; 0 means unlimited.")] = DEFAULTS.jobs_per_hour
    or 0,
    stored_bytes: Annotated[
        int, typer.Option(min=0, help="What the key's jobs occupy in Redis; 0 means unlimited.")
    ] = DEFAULTS.stored_bytes or 0,
    streams: Annotated[int, typer.Option(min=0, help="Open event streams; 0 means unlimited.")] = DEFAULTS.streams or 0,
    create: Annotated[
        bool, typer.Option("--create", help="Also if no service has used the data directory yet: prepare it.")
    ] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    redis_url: EmbeddedOrRedisUrl = None,
) -> None:
    """Create a key and print it. It is not shown again.

    --data-dir must be the directory that `sharecap up` uses, and REDIS_URL the server that the service uses: a key is
    valid only there. From the first key on, every request to the service needs a key.

    sharecap keys add alice --data-dir /srv/sharecap/data
    """
    limits = KeyLimits(
        requests_per_minute=requests_per_minute or None,
        upload_bytes_per_day=upload_bytes_per_day or None,
        jobs=jobs or None,
        jobs_per_hour=jobs_per_hour or None,
        stored_bytes=stored_bytes or None,
        streams=streams or None,
    )
    key, text = query(data_dir, redis_url, lambda keys: keys.add(name, limits), create=create)
    print(text)
    notes.print(f"Store this key: it is not shown again. To revoke it, use its id {key.id}.")


@app.command(name="list")
def show(*, data_dir: DataDir = DEFAULT_DATA_DIR, redis_url: EmbeddedOrRedisUrl = None) -> None:
    """List all keys, including revoked ones, with their limits."""
    table = Table(*COLUMNS, box=None)
    for key in query(data_dir, redis_url, lambda keys: keys.all()):
        table.add_row(*_row(key))
    Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH).print(table)


@app.command()
def revoke(
    *,
    key_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the key, sc_…; `sharecap keys list` shows it.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    redis_url: EmbeddedOrRedisUrl = None,
) -> None:
    """Revoke a key. Its jobs continue and expire as usual."""
    key = query(data_dir, redis_url, lambda keys: keys.revoke(key_id))
    if key is None:
        raise CannotStart(f"unknown key {key_id}: `sharecap keys list` shows all keys")
    notes.print(f"{key.id} ({key.name}) is revoked. The service refuses it within two seconds.")


def query(
    data_dir: Path, redis_url: str | None, ask: Callable[[ApiKeyStore], Awaitable[T]], *, create: bool = False
) -> T:
    """Return the result of `ask`.

    Raises CannotStart if the server does not answer or, unless `create` is true, if the data directory has none.
    """

    async def connect_and_query() -> T:
        async with _server(data_dir.absolute(), redis_url, create) as url, connect(url) as redis:
            return await ask(ApiKeyStore(redis))

    try:
        return asyncio.run(connect_and_query())
    except (RedisError, OSError, ValueError) as error:
        problem = f"the Redis server of the service does not answer: {str(error).rstrip('.')}"
        raise CannotStart(f"{problem}. Start it, or correct --redis-url or REDIS_URL") from None


@asynccontextmanager
async def _server(data_dir: Path, redis_url: str | None, create: bool) -> AsyncIterator[str]:
    """Provide the URL of the server: the given one, the configured one, or that of the data directory."""
    if url := redis_url or configured_redis_url():
        yield url
        return
    if not create and not has_valkey(data_dir):
        raise CannotStart(
            f"no service has used the data directory {data_dir}, so a key would be valid nowhere. Give the --data-dir "
            "of the service (for `sharecap up`, `data` in the directory where it was started) or its REDIS_URL. To "
            "create a key before the first start, use `sharecap keys add --create`"
        )
    async with embedded_valkey(data_dir) as url:
        yield url


def _row(key: ApiKey) -> tuple[str, ...]:
    limits = (
        key.limits.requests_per_minute,
        key.limits.upload_bytes_per_day,
        key.limits.jobs,
        key.limits.jobs_per_hour,
        key.limits.stored_bytes,
        key.limits.streams,
    )
    revoked = f"{key.revoked_at:%Y-%m-%d %H:%M}" if key.revoked_at else ""
    cells = (str(limit) if limit else "unlimited" for limit in limits)
    return (key.id, key.name, f"{key.created_at:%Y-%m-%d %H:%M}", *cells, revoked)
