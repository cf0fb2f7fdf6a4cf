"""`sharecap keys`: API keys made, listed and revoked, in the Redis of the service or in the data directory's own."""

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

from service.access.keys import Key, KeyLimits, Keys
from service.contract.store.connection import connect
from service.local.up import CannotStart, embedded_valkey

T = TypeVar("T")
DEFAULTS = KeyLimits()
WIDTH = 200
"""Where there is no terminal to ask."""

app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)
notes = Console(stderr=True, highlight=False)

DataDir = Annotated[Path, typer.Option(envvar="DATA_DIR", help="Of a `sharecap up` without REDIS_URL, running or not.")]
RedisUrl = Annotated[
    str | None,
    typer.Option(envvar="REDIS_URL", help="The service's Redis or Valkey server; else the data directory's."),
]


@app.command()
def add(
    *,
    name: Annotated[str, typer.Argument(help="Whose key it is, in your words.")],
    requests_per_minute: Annotated[int, typer.Option(min=0, help="0: no limit.")] = DEFAULTS.requests_per_minute or 0,
    upload_bytes_per_day: Annotated[int, typer.Option(min=0, help="0: no limit.")] = DEFAULTS.upload_bytes_per_day or 0,
    jobs: Annotated[int, typer.Option(min=0, help="Unfinished jobs at a time; 0: no limit.")] = DEFAULTS.jobs or 0,
    streams: Annotated[int, typer.Option(min=0, help="Open event streams; 0: no limit.")] = DEFAULTS.streams or 0,
    data_dir: DataDir = Path("data"),
    redis_url: RedisUrl = None,
) -> None:
    """Make a key, and print it: the only time that it is shown."""
    limits = KeyLimits(
        requests_per_minute=requests_per_minute or None,
        upload_bytes_per_day=upload_bytes_per_day or None,
        jobs=jobs or None,
        streams=streams or None,
    )
    key, text = _ask(data_dir, redis_url, lambda keys: keys.add(name, limits))
    print(text)
    notes.print(f"Keep it: it is not shown again. Revoke it by its id, {key.id}.")


@app.command(name="list")
def show(*, data_dir: DataDir = Path("data"), redis_url: RedisUrl = None) -> None:
    """List all keys that were ever made, with their limits."""
    table = Table("id", "name", "made", "requests/min", "bytes/day", "jobs", "streams", "revoked", box=None)
    for key in _ask(data_dir, redis_url, lambda keys: keys.all()):
        table.add_row(*_row(key))
    Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH).print(table)


@app.command()
def revoke(
    *,
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The part of the key before its last `_`.")],
    data_dir: DataDir = Path("data"),
    redis_url: RedisUrl = None,
) -> None:
    """Let a key open nothing any more. Its jobs go on, and go in time."""
    key = _ask(data_dir, redis_url, lambda keys: keys.revoke(key_id))
    if key is None:
        raise CannotStart(f"there is no key {key_id}: `sharecap keys list` names all")
    notes.print(f"{key.id} ({key.name}) is revoked; within two seconds nothing opens to it.")


def _ask(data_dir: Path, redis_url: str | None, question: Callable[[Keys], Awaitable[T]]) -> T:
    async def ask() -> T:
        async with _server(data_dir.absolute(), redis_url) as url, connect(url) as redis:
            return await question(Keys(redis))

    try:
        return asyncio.run(ask())
    except (RedisError, OSError, ValueError) as error:
        raise CannotStart(f"the server of the service does not answer: {error}") from None


@asynccontextmanager
async def _server(data_dir: Path, redis_url: str | None) -> AsyncIterator[str]:
    if redis_url:
        yield redis_url
        return
    async with embedded_valkey(data_dir) as url:
        yield url


def _row(key: Key) -> tuple[str, ...]:
    limits = (
        key.limits.requests_per_minute,
        key.limits.upload_bytes_per_day,
        key.limits.jobs,
        key.limits.streams,
    )
    revoked = f"{key.revoked_at:%Y-%m-%d %H:%M}" if key.revoked_at else ""
    told = (str(limit) if limit else "any" for limit in limits)
    return (key.id, key.name, f"{key.created_at:%Y-%m-%d %H:%M}", *told, revoked)
