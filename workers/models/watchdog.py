"""Notices an engine that hangs: it has requests, but has taken no step for `stall_s` seconds.

vLLM reports statistics after every step, also after a step that only processed a part of a long prompt. So a long
prompt or a long queue does not look like a hang; only a single step that takes longer than `stall_s` does.
"""

import asyncio
import time
from typing import Any

from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.loggers import StatLoggerBase

CHECK_EVERY_S = 0.5


class StepCounter(StatLoggerBase):
    """Counts the engine's steps. It is the engine's stat logger and its own factory."""

    def __init__(self) -> None:
        self.steps = 0

    def __call__(self, vllm_config: Any, engine_index: int = 0) -> "StepCounter":
        return self

    def record(self, *args: Any, **options: Any) -> None:
        self.steps += 1

    def log_engine_initialized(self) -> None: ...


async def wait_for_stall(llm: AsyncLLM, counter: StepCounter, stall_s: float) -> None:
    """Return when the engine has had requests, but has taken no step, for `stall_s` seconds.

    Only time in which this event loop ran counts: after this process was frozen, the engine gets its full time again.
    """
    # The first request makes this call before it counts as unfinished, and then waits for the engine's answer.
    first_call = asyncio.create_task(llm.get_supported_tasks())
    steps, silent_s, checked_at = counter.steps, 0.0, time.monotonic()
    while silent_s < stall_s:
        await asyncio.sleep(CHECK_EVERY_S)
        now = time.monotonic()
        silent_s += min(now - checked_at, 2 * CHECK_EVERY_S)
        checked_at = now
        idle = first_call.done() and llm.get_num_unfinished_requests() == 0
        if counter.steps != steps or idle:
            steps, silent_s = counter.steps, 0.0


def kill_engine(llm: AsyncLLM) -> None:
    """Kill the engine's processes. Its requests then end with EngineDeadError."""
    manager: Any = llm.engine_core.resources.engine_manager
    for process in manager.processes:
        process.kill()
