"""A gateway in its own process, started with `python -m service`."""

import asyncio
import os
import resource
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx
import psutil

from service.local.up import free_port

ROOT = Path(__file__).resolve().parents[2]


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of a child process: only what Python needs, and `variables`."""
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **variables}


@asynccontextmanager
async def gateway_process(
    redis_url: str, data_dir: Path, *, open_files: int | None = None, **settings: object
) -> AsyncIterator[tuple[str, psutil.Process]]:
    """Start a gateway and wait until it answers. Yields its URL and its process, and kills the process at the end.

    `open_files` limits its file descriptors, as `ulimit -n` does.
    """
    port = free_port()
    values = {"redis_url": redis_url, "data_dir": data_dir, "port": port, "min_free_bytes": 0, **settings}
    env = environment(**{name.upper(): str(value) for name, value in values.items()})
    log = (data_dir.parent / "gateway.log").open("wb")
    with log:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "service", env=env, stdout=log, stderr=log, preexec_fn=_limit(open_files)
        )
    url = f"http://127.0.0.1:{port}"
    try:
        async with asyncio.timeout(60), httpx.AsyncClient(base_url=url, trust_env=False) as client:
            while not await _answers(client):
                assert child.returncode is None, "the gateway exited"
                await asyncio.sleep(0.05)
        yield url, psutil.Process(child.pid)
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


def _limit(open_files: int | None) -> Callable[[], None] | None:
    if open_files is None:
        return None
    return partial(resource.setrlimit, resource.RLIMIT_NOFILE, (open_files, open_files))


async def _answers(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/healthz")).status_code == 200
    except httpx.TransportError:
        return False
