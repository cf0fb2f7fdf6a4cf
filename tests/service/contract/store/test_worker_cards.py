"""Worker cards: a worker is alive while its card exists."""

from service.contract.store.keys import WORKERS, worker_key
from service.contract.store.store import Store
from service.contract.store.worker_cards import CARD_EVERY_S, CARD_TTL_S, LAST_CARD_TTL_S, WorkerCard

CARD = WorkerCard(id="w1", model="m", slots=4)


async def test_a_card_exists_until_it_is_hidden_or_expires(store: Store) -> None:
    assert await store.workers() == []
    await store.show_worker(CARD)
    assert await store.workers() == [CARD]
    assert 2 * CARD_EVERY_S < await store.redis.pttl(worker_key("w1")) / 1000 <= CARD_TTL_S < 5
    await store.hide_worker("w1")
    assert await store.workers() == []


async def test_an_expired_worker_is_removed_from_the_list_and_can_return(store: Store) -> None:
    await store.show_worker(CARD)
    await store.redis.delete(worker_key("w1"))
    assert await store.workers() == []
    assert await store.redis.smembers(WORKERS) == set()
    await store.show_worker(CARD)
    assert await store.workers() == [CARD]


async def test_a_worker_whose_engine_died_is_not_live(store: Store) -> None:
    stalled = CARD.model_copy(update={"engine": "stalled"})
    await store.show_worker(CARD)
    await store.show_worker(stalled)
    assert await store.workers() == []
    assert await store.worker_cards() == [stalled]
    assert CARD_TTL_S < await store.redis.ttl(worker_key("w1")) <= LAST_CARD_TTL_S
