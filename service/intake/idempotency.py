"""`Idempotency-Key`: the same request sent again finds the job that it made.

    sharecap:idempotency:{owner}:{sha256 of the key}  hash  fingerprint, job, removed ('1' once that job was removed)

The entry reserves the job's id before there is a job. Whoever sends the key again with the same request gets the same
id, and makes the job where it is not there: because the sender of the first one is still at it, or its gateway was
killed. Since a job can be made only once under an id, none is made twice. An entry lives for 24 hours, and at least as
long as its job.
"""

import hashlib
from typing import Any

from fastapi import Request
from redis.asyncio import Redis

from service.contract.errors import IdempotencyConflict, InvalidOption
from service.contract.jobs import Record
from service.contract.store.store import job_key

HEADER = "idempotency-key"
MOST_CHARS = 255
KEPT_S = 24 * 3600

# KEYS entry; ARGV fingerprint job kept_s job_key_prefix. Returns the job's id and whether it is there: 1, 0, or 2 where
# it was removed; nothing where the key was used for another request.
_RESERVE = """
local fingerprint, job, removed = unpack(redis.call('HMGET', KEYS[1], 'fingerprint', 'job', 'removed'))
if not fingerprint then
  redis.call('HSET', KEYS[1], 'fingerprint', ARGV[1], 'job', ARGV[2])
  redis.call('EXPIRE', KEYS[1], ARGV[3])
  return {ARGV[2], 0}
end
if fingerprint ~= ARGV[1] then return nil end
if removed then return {job, 2} end
return {job, redis.call('EXISTS', ARGV[4] .. job)}
"""


class Idempotency:
    """All reads and writes of the entries. `redis` must decode responses to `str`."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis
        self._reserve = redis.register_script(_RESERVE)

    async def is_known(self, owner: str | None, key: str) -> bool:
        """Whether a request with this key came before."""
        return bool(await self._redis.exists(_entry(owner, key)))

    async def reserve(self, record: Record) -> tuple[str, bool]:
        """Return the id that the record's job has to have, and whether that job is there.

        Raises IdempotencyConflict where the key belongs to another request, or to a job that was removed.
        """
        assert record.idempotency is not None
        found = await self._reserve(
            keys=[_entry(record.owner, record.idempotency)], args=[_fingerprint(record), record.id, KEPT_S, job_key("")]
        )
        if found is None:
            raise IdempotencyConflict("This Idempotency-Key was sent before with another request: take a new one.")
        job_id, there = found
        if there == 2:
            raise IdempotencyConflict("The job that this Idempotency-Key made was removed: take a new one.")
        return job_id, there == 1

    def entry(self, record: Record) -> str:
        """Return the key of the entry that is to live as long as the record's job; empty where it has none."""
        return _entry(record.owner, record.idempotency) if record.idempotency else ""

    async def let_go(self, record: Record) -> None:
        """Say that the job is being removed; what is left of the 24 hours the entry stays."""
        entry = self.entry(record)
        if not entry:
            return
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(entry, "removed", "1")
            pipe.expireat(entry, int(record.created_at.timestamp()) + KEPT_S)
            await pipe.execute()


def key_of(request: Request) -> str | None:
    """Return the SHA-256 of the request's key, none where it has none. Raises InvalidOption.

    A key is any visible ASCII; one in quotes, as the draft standard has it, is the same as without.
    """
    told = request.headers.getlist(HEADER)
    if not told:
        return None
    text = told[0].strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    if len(told) > 1 or not (0 < len(text) <= MOST_CHARS and text.isascii() and text.isprintable()):
        raise InvalidOption(f"Idempotency-Key: one of 1 to {MOST_CHARS} printable ASCII characters")
    return hashlib.sha256(text.encode()).hexdigest()


def _fingerprint(record: Record) -> str:
    """Return what two requests have in common exactly if they ask for the same.

    Options that are as by default are left out, so that a new option changes nothing for those who do not use it.
    """
    own = {"id": True, "created_at": True, "owner": True, "idempotency": True, "source": True}
    source = record.source and record.source.model_dump_json(include={"filename", "url", "sha256"})
    return hashlib.sha256(f"{record.model_dump_json(exclude=own, exclude_defaults=True)}{source}".encode()).hexdigest()


def _entry(owner: str | None, key: str | None) -> str:
    return f"sharecap:idempotency:{owner or ''}:{key}"
