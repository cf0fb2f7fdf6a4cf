"""Worker cards: how the gateway knows which workers are alive."""

from typing import Any

from pydantic import BaseModel

from service.contract.store.keys import WORKERS, worker_key

CARD_EVERY_S = 5.0
"""A worker writes its card this often."""
CARD_TTL_S = round(3 * CARD_EVERY_S)


class WorkerCard(BaseModel):
    """What a live worker reports about itself."""

    id: str
    model: str
    slots: int
    running: int = 0


class WorkerCardStore:
    """Reads and writes of worker cards."""

    redis: Any

    async def show_worker(self, card: WorkerCard) -> None:
        """Write a worker's card; it expires after `CARD_TTL_S`."""
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.set(worker_key(card.id), card.model_dump_json(), ex=CARD_TTL_S)
            pipe.sadd(WORKERS, card.id)
            await pipe.execute()

    async def hide_worker(self, worker_id: str) -> None:
        """Delete a worker's card."""
        await self.redis.delete(worker_key(worker_id))

    async def worker(self, worker_id: str) -> WorkerCard | None:
        """Return the card of a live worker, None if the worker is not alive."""
        text = await self.redis.get(worker_key(worker_id))
        return WorkerCard.model_validate_json(text) if text else None

    async def workers(self) -> list[WorkerCard]:
        """Return the cards of all live workers. A worker has a card once its model is loaded."""
        ids = sorted(await self.redis.smembers(WORKERS))
        cards = await self.redis.mget([worker_key(worker_id) for worker_id in ids]) if ids else []
        if expired := [worker_id for worker_id, card in zip(ids, cards, strict=True) if not card]:
            await self.redis.srem(WORKERS, *expired)  # a worker that is alive after all returns with its next card
        return [WorkerCard.model_validate_json(card) for card in cards if card]
