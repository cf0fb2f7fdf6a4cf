"""Turns of videos wait for short answers, for a bounded time."""

import asyncio
from itertools import pairwise

import pytest

from workers.models.short_first import ShortFirst


async def seconds_until_admitted(gate: ShortFirst) -> float:
    loop = asyncio.get_running_loop()
    start = loop.time()
    async with gate.admit(patient=True):
        return loop.time() - start


async def test_a_patient_turn_waits_until_the_last_short_answer_ends() -> None:
    gate = ShortFirst(hold_s=5)
    assert await seconds_until_admitted(gate) < 1
    async with gate.admit(patient=False):
        waiting = asyncio.create_task(seconds_until_admitted(gate))
        async with gate.admit(patient=False):
            await asyncio.sleep(0.2)
        assert not waiting.done()
        await asyncio.sleep(0.2)
    assert 0.35 < await waiting < 2


async def test_a_patient_turn_does_not_starve() -> None:
    gate = ShortFirst(hold_s=0.3)
    async with gate.admit(patient=False):
        assert 0.25 < await seconds_until_admitted(gate) < 2


async def test_patient_turns_go_one_by_one_after_a_short_answer() -> None:
    gate, order = ShortFirst(hold_s=1), []

    async def turn(number: int) -> float:
        waited_s = await seconds_until_admitted(gate)
        order.append(number)
        return waited_s

    async with gate.admit(patient=False):
        turns = [asyncio.create_task(turn(number)) for number in range(5)]
        await asyncio.sleep(0.1)
    waits_s = await asyncio.gather(*turns)
    pauses_s = [later - earlier for earlier, later in pairwise(waits_s)]
    assert order == list(range(5)) and min(pauses_s) > 0.03, "1 s / PAUSES_IN_HOLD apart"


async def test_patient_turns_do_not_wait_for_each_other_without_short_answers() -> None:
    gate = ShortFirst(hold_s=10)
    waits_s = await asyncio.gather(*(seconds_until_admitted(gate) for _ in range(50)))
    assert max(waits_s) < 0.4, "50 pauses of 0.5 s would take 25 s"


async def test_short_answers_never_wait() -> None:
    gate = ShortFirst(hold_s=5)
    async with gate.admit(patient=True), gate.admit(patient=False), gate.admit(patient=False):
        pass


async def test_a_failed_short_answer_lets_patient_turns_go() -> None:
    gate = ShortFirst(hold_s=5)
    with pytest.raises(RuntimeError):
        async with gate.admit(patient=False):
            raise RuntimeError
    assert await seconds_until_admitted(gate) < 1
