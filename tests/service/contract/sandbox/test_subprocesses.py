"""How children are ended."""

import asyncio
import sys
from asyncio.subprocess import PIPE

import pytest

from service.contract.sandbox.subprocesses import kill_and_wait


async def test_a_child_is_gone_however_often_its_parent_is_cancelled() -> None:
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", "while True: print('x' * 1000)", stdout=PIPE)
    ending = asyncio.create_task(kill_and_wait(child))
    for _ in range(3):
        await asyncio.sleep(0)
        ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert child.returncode == -9
