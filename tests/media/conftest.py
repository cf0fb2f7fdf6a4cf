"""One fork server for all decoded clips of a module. The tests run on one event loop, because it belongs to a loop."""

from collections.abc import AsyncIterator

import pytest_asyncio

from service.contract.sandbox.subprocesses import ChildStarter
from workers.video.frames import LIBRARIES


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def starter() -> AsyncIterator[ChildStarter]:
    async with ChildStarter(LIBRARIES) as starter:
        yield starter
