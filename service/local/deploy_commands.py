"""`sharecap deploy`: makes the secrets of a deployment with containers, once, when it starts for the first time.

`secrets` runs before the Redis server starts. It makes the password of Redis, for the server (`redis.acl`) and for the
gateway and the workers (`redis_url`, read through `SECRETS_DIR`), and replaces a lost file. `first-key` runs before the
gateway starts. It makes an API key, so that the service is never open. Both do nothing if their result exists.
"""

import hashlib
import os
import secrets as random
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

import typer
from rich.console import Console

from service.access.api_keys import ApiKeyStore, KeyLimits, new_key
from service.contract.storage.private import keep_files_private
from service.contract.store.keys import ALL_KEYS
from service.local.cli_options import EmbeddedOrRedisUrl
from service.local.key_commands import query
from service.local.start_checks import CannotStart

USER = "sharecap"
ACL = (
    "user default on nopass resetkeys resetchannels -@all +ping\n"
    "user {user} on #{sha256} {keys} resetchannels &rq:* +@all -@admin -@dangerous +info +client|list\n"
)
"""Permissions in Redis. Without the password only PING is allowed, for health checks. The service's user has its own
keys and channels, and no commands that administer the server; RQ needs `INFO` and `CLIENT LIST`."""
READABLE_BY_GROUP = 0o640

app = typer.Typer(help="Make the secrets of a deployment with containers.", no_args_is_help=True)
out = Console(highlight=False)


@app.command()
def secrets(
    *,
    directory: Annotated[Path, typer.Argument(help="Directory of the secrets.")],
    redis: Annotated[str, typer.Option(help="Host and port of the Redis server.")] = "redis:6379",
) -> None:
    """Make a password for Redis: `redis.acl` for the server, `redis_url` for gateway and workers."""
    keep_files_private()
    url_file, acl_file = directory / "redis_url", directory / "redis.acl"
    if url_file.exists() and acl_file.exists():
        out.print(f"the secrets in {directory} exist", soft_wrap=True)
        return
    if not url_file.exists():
        _write(url_file, f"redis://{USER}:{random.token_hex(32)}@{redis}/0\n")
    keys = " ".join(f"~{pattern}" for pattern in ALL_KEYS)
    acl = ACL.format(user=USER, sha256=hashlib.sha256(_password(url_file).encode()).hexdigest(), keys=keys)
    _write(acl_file, acl, READABLE_BY_GROUP)  # it contains no secret, and the server is another user
    out.print(f"the password of Redis is in {url_file}", soft_wrap=True)


@app.command()
def first_key(
    *,
    file: Annotated[Path, typer.Argument(help="File for the key.")],
    name: Annotated[str, typer.Option(help="Name of the key's owner.")] = "first",
    redis_url: EmbeddedOrRedisUrl = None,
) -> None:
    """Create an API key unless one was ever created, and print the file that contains it."""
    keep_files_private()
    if query(file.parent, redis_url, ApiKeyStore.any_created):
        out.print("API keys exist: `sharecap keys list`")
        return
    key, text = new_key(name, KeyLimits())
    _write(file, f"{text}\n")  # first: a key that is in Redis alone would be lost
    query(file.parent, redis_url, lambda keys: keys.store(key))
    out.print(f"the first API key is in {file}", soft_wrap=True)


def _password(url_file: Path) -> str:
    """Return the password of the URL in this file. Raises CannotStart."""
    try:
        password = urlsplit(url_file.read_text()).password
    except (OSError, ValueError):
        password = None
    if not password:
        raise CannotStart(f"{url_file} contains no password; remove the file to make a new one")
    return unquote(password)


def _write(path: Path, text: str, mode: int = 0o600) -> None:
    """Write a file in one step, durably, with this mode. Raises CannotStart."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("w") as file:
            part.chmod(mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
    except OSError as error:
        raise CannotStart(f"cannot write {path}: {error.strerror}") from None
