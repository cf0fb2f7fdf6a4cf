"""When decoders start: their number and the available memory."""

import asyncio

import pytest

from service.contract.errors import DecodeFailed, DecoderKilled
from workers.video import decoders as module
from workers.video.decoders import Decoders

GIB = 1 << 30


class Machine:
    """Memory that a test sets, and the number of decoders that run."""

    def __init__(self, limit: int, available: int, key_share: float = 1.0) -> None:
        self.available = available
        self.decoders = Decoders(limit, key_share, lambda: self.available)
        self.running = 0
        self.tasks: list[asyncio.Task[None]] = []

    async def decode(self, error: Exception | None = None, key: str | None = None) -> None:
        async with self.decoders.place(key):
            self.running += 1
            try:
                if error is not None:
                    raise error
                await asyncio.sleep(60)
            finally:
                self.running -= 1

    async def start(self, count: int) -> list[asyncio.Task[None]]:
        """Start decoders and let them run as far as they can."""
        self.tasks = [asyncio.create_task(self.decode()) for _ in range(count)]
        await asyncio.sleep(0.05)
        return self.tasks


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.01)
    monkeypatch.setattr(module, "AFTER_KILL_S", 0.0)


async def test_the_number_is_limited() -> None:
    machine = Machine(2, 100 * GIB)
    await machine.start(3)
    assert machine.running == 2
    for task in machine.tasks:
        task.cancel()


async def test_long_videos_of_one_key_leave_a_decoder_free() -> None:
    machine = Machine(2, 100 * GIB, key_share=0.75)
    tasks = [asyncio.create_task(machine.decode(key="a")) for _ in range(3)]
    await asyncio.sleep(0.05)
    assert machine.running == 1
    tasks.append(asyncio.create_task(machine.decode(key="b")))
    await asyncio.sleep(0.05)
    assert machine.running == 2
    for task in tasks:
        task.cancel()


async def test_a_decoder_that_waits_for_memory_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(2, GIB)
    await machine.start(2)
    assert [record.getMessage() for record in caplog.records] == [
        "a decoder waits for memory: 1024 MiB are available, 2304 MiB are needed"
    ]
    for task in machine.tasks:
        task.cancel()


async def test_one_decoder_at_a_time_if_memory_is_short() -> None:
    machine = Machine(4, GIB)
    first, second, third = await machine.start(3)
    assert machine.running == 1
    first.cancel()
    await asyncio.sleep(0.05)
    assert machine.running == 1
    machine.available = 3 * GIB
    await asyncio.sleep(0.05)
    assert machine.running == 2
    second.cancel()
    third.cancel()


async def test_a_cancelled_wait_leaves_its_place_to_others() -> None:
    machine = Machine(2, GIB)
    first, waiting = await machine.start(2)
    waiting.cancel()
    await asyncio.sleep(0)
    machine.available = 3 * GIB
    await machine.start(1)
    assert machine.running == 2
    for task in (first, *machine.tasks):
        task.cancel()


async def test_after_a_kill_the_attempt_ends_only_when_memory_is_available() -> None:
    machine = Machine(1, GIB)
    killed = asyncio.create_task(machine.decode(DecoderKilled()))
    await machine.start(1)
    assert not killed.done()
    assert machine.running == 0, "no other decoder starts meanwhile"
    machine.available = 3 * GIB
    with pytest.raises(DecoderKilled):
        await asyncio.wait_for(killed, 1)
    await asyncio.sleep(0)
    assert machine.running == 1
    machine.tasks[0].cancel()


async def test_the_wait_after_a_kill_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAIT_AFTER_KILL_S", 0.05)
    with pytest.raises(DecoderKilled):
        await asyncio.wait_for(Machine(1, GIB).decode(DecoderKilled()), 1)


async def test_other_failures_end_at_once() -> None:
    with pytest.raises(DecodeFailed):
        await asyncio.wait_for(Machine(1, 0).decode(DecodeFailed("")), 1)
