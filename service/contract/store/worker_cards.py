"""Worker cards: how the gateway knows which workers are alive.

A live worker writes its card every `CARD_EVERY_S`. The card of a killed, frozen or unreachable worker expires within
`CARD_TTL_S`. A worker whose engine died leaves a last card that says why.
"""

from typing import Any, Literal

from pydantic import BaseModel

from service.contract.store.keys import WORKERS, worker_key

CARD_EVERY_S = 1.5
"""A worker writes its card this often. One small write: a worker with jobs renews their leases more often than that."""
CARD_TTL_S = 3 * CARD_EVERY_S
LAST_CARD_TTL_S = 120.0
"""How long the last card of a worker with a dead engine remains: long enough for a scrape of the metrics."""

EngineState = Literal["alive", "died", "stalled"]


class WorkerCard(BaseModel):
    """What a worker reports about itself. `engine`: whether its engine works, or how it ended.

    `demonstration` says what a demonstration model knows and what it cannot do; it is empty for any other model.
    """

    id: str
    host: str = ""
    """Name of the worker's host."""
    model: str
    demonstration: str = ""
    slots: int
    running: int = 0
    engine: EngineState = "alive"


class WorkerCardStore:
    """Reads and writes of worker cards."""

    redis: Any

    async def show_worker(self, card: WorkerCard) -> None:
        """Write a worker's card; it expires after `CARD_TTL_S`, or `LAST_CARD_TTL_S` if the engine is dead."""
        ttl_s = CARD_TTL_S if card.engine == "alive" else LAST_CARD_TTL_S
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.set(worker_key(card.id), card.model_dump_json(), px=round(1000 * ttl_s))
            pipe.sadd(WORKERS, card.id)
            await pipe.execute()

    async def hide_worker(self, worker_id: str) -> None:
        """Delete a worker's card."""
        await self.redis.delete(worker_key(worker_id))

    async def workers(self) -> list[WorkerCard]:
        """Return the cards of all live workers. A worker has a card once its model is loaded."""
        return [card for card in await self.worker_cards() if card.engine == "alive"]

    async def worker_cards(self) -> list[WorkerCard]:
        """Return the cards of all live workers and the last cards of those whose engine died."""
        ids = sorted(await self.redis.smembers(WORKERS))
        cards = await self.redis.mget([worker_key(worker_id) for worker_id in ids]) if ids else []
        if expired := [worker_id for worker_id, card in zip(ids, cards, strict=True) if not card]:
            await self.redis.srem(WORKERS, *expired)  # a worker that is alive after all returns with its next card
        return [WorkerCard.model_validate_json(card) for card in cards if card]
