"""The watchdog: when an engine counts as hung."""

import asyncio
from typing import Any

import pytest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # importing vLLM in this process warns
STALL_S = 1.0


class FakeEngine:
    """`requests`: how many are unfinished. `answers`: whether the engine answers calls other than requests."""

    def __init__(self, requests: int, answers: bool) -> None:
        self.requests = requests
        self.answers = answers

    def get_num_unfinished_requests(self) -> int:
        return self.requests

    async def get_supported_tasks(self) -> tuple[str, ...]:
        if not self.answers:
            await asyncio.Event().wait()
        return ("generate",)


@pytest.mark.parametrize(
    ("requests", "answers", "steps", "hung"),
    [
        (0, True, False, False),
        (1, True, True, False),
        (1, True, False, True),
        (0, False, False, True),
    ],
    ids=["idle", "busy", "no step", "no answer to the call that precedes the first request"],
)
async def test_an_engine_hangs_if_it_has_work_and_takes_no_step(
    requests: int, answers: bool, steps: bool, hung: bool
) -> None:
    from workers.models.watchdog import StepCounter, wait_for_stall  # noqa: PLC0415 (imports vLLM)

    llm: Any = FakeEngine(requests, answers)
    counter = StepCounter()
    watching = asyncio.create_task(wait_for_stall(llm, counter, STALL_S))
    for _ in range(10):
        await asyncio.sleep(0.3)
        counter.steps += steps
    assert watching.done() is hung
    watching.cancel()
