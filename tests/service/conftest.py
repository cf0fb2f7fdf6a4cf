"""A gateway served over real HTTP on a free port."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.app import Server, create_app
from service.contract.store.store import Store
from service.settings import Settings
from tests.service.scripted import ScriptedWorker, Serve, Served


@pytest.fixture
def serve(tmp_path: Path, redis_url: str) -> Serve:
    """`async with serve(max_upload_bytes=…) as gateway` runs a gateway with these settings until the block ends."""

    @asynccontextmanager
    async def serving(**changes: Any) -> AsyncIterator[Served]:
        values = {"redis_url": redis_url, "data_dir": tmp_path / "data", "port": 0, "min_free_bytes": 0, **changes}
        settings = Settings(**values)
        app = create_app(settings)
        server = Server(app, settings)
        server.config.log_level = "error"
        server.config.configure_logging()
        task = asyncio.create_task(server._serve())
        while not server.started:
            await asyncio.sleep(0.01)
            assert not task.done(), "the gateway did not start"
        port = server.servers[0].sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        try:
            async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
                yield Served(url, settings, client, app, server)
        finally:
            server.should_exit = True
            await task

    return serving


@pytest.fixture
async def gateway(serve: Serve) -> AsyncIterator[Served]:
    async with serve(heartbeat_s=0.2) as served:
        yield served


@pytest.fixture
def worker(store: Store) -> ScriptedWorker:
    return ScriptedWorker(store)
