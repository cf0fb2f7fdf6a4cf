"""Places that API keys share: the bounds, the order, and what remains of a key that holds none."""

import asyncio

from service.contract.places import Places, share_of


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_the_share_of_a_key() -> None:
    assert [share_of(total, 0.75) for total in (1, 2, 3, 4, 128)] == [1, 1, 2, 3, 96]
    assert share_of(4, 1.0) == 4


async def test_places_are_given_in_order_within_a_key_and_to_other_keys_at_once() -> None:
    places, order = Places(None, 8), []

    async def work(name: str, key: str, count: int) -> None:
        async with places.hold(key, count):
            order.append(name)
            await asyncio.sleep(0.01)

    jobs = [("a1", "a", 8), ("a2", "a", 8), ("a3", "a", 1), ("b1", "b", 8), ("b2", "b", 20)]
    await asyncio.gather(*(work(*job) for job in jobs))
    assert order[:2] == ["a1", "b1"]
    assert order.index("a2") < order.index("a3"), "a small request does not overtake a large one"
    assert places.used == 0


async def test_a_cancelled_wait_gives_its_turn_to_the_next() -> None:
    places = Places(1, 1)
    places.take("a")
    first, second = (asyncio.create_task(places.wait("a")) for _ in range(2))
    await settle()
    first.cancel()
    await settle()
    places.give_back("a")
    async with asyncio.timeout(1):
        await second
    assert places.used == 1 and places.full_keys() == ["a"]


async def test_keys_that_neither_hold_nor_wait_are_forgotten() -> None:
    places = Places(2, 1)

    async def work(key: str) -> None:
        async with places.hold(key):
            await asyncio.sleep(0)

    await asyncio.gather(*(work(f"key {number % 50}") for number in range(100)))
    assert places.used == len(places._held) == len(places._turnstiles) == 0
