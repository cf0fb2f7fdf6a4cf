"""Ending child processes."""

import asyncio
import sys
from asyncio.subprocess import PIPE

import pytest

from service.contract.sandbox.subprocesses import kill_and_wait


async def test_a_child_has_exited_even_if_the_caller_is_cancelled_repeatedly() -> None:
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", "while True: print('x' * 1000)", stdout=PIPE)
    killing = asyncio.create_task(kill_and_wait(child))
    for _ in range(3):
        await asyncio.sleep(0)
        killing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await killing
    assert child.returncode == -9
