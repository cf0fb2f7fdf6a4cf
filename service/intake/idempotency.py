"""`Idempotency-Key`: a repeated request finds the job that the first request created.

Redis stores an entry for each key of each owner. The entry reserves the job's id before the job exists. A repeated
request gets the same id and creates the job if it does not exist yet, because the first request is still running or its
gateway was killed. A job id can be created only once, so no job is created twice. An entry lives for 24 hours and at
least as long as its job.
"""

import hashlib
from typing import Any

from fastapi import Request
from redis.asyncio import Redis

from service.contract.errors import IdempotencyConflict, InvalidOption
from service.contract.jobs import Record
from service.contract.store.keys import JOB_PREFIX, idempotency_key

HEADER = "idempotency-key"
MAX_CHARS = 255
TTL_S = 24 * 3600

# KEYS entry; ARGV fingerprint job ttl_s job_key_prefix. Returns the reserved job id and 'new', 'exists' or 'removed';
# or nil if the key was used for another request.
_RESERVE = """
local fingerprint, job, removed = unpack(redis.call('HMGET', KEYS[1], 'fingerprint', 'job', 'removed'))
if not fingerprint then
  redis.call('HSET', KEYS[1], 'fingerprint', ARGV[1], 'job', ARGV[2])
  redis.call('EXPIRE', KEYS[1], ARGV[3])
  return {ARGV[2], 'new'}
end
if fingerprint ~= ARGV[1] then return nil end
if removed then return {job, 'removed'} end
if redis.call('EXISTS', ARGV[4] .. job) == 1 then return {job, 'exists'} end
return {job, 'new'}
"""


class Idempotency:
    """All reads and writes of the entries. `redis` must decode responses to `str`."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis
        self._reserve = redis.register_script(_RESERVE)

    async def is_known(self, owner: str | None, key: str) -> bool:
        """Return whether an earlier request used this key."""
        return bool(await self._redis.exists(idempotency_key(owner, key)))

    async def reserve(self, record: Record, key: str) -> tuple[str, bool]:
        """Return the id that the record's job must use, and whether that job exists already.

        Raises IdempotencyConflict if the key belongs to a different request or to a deleted job.
        """
        reserved = await self._reserve(
            keys=[idempotency_key(record.owner, key)], args=[_fingerprint(record), record.id, TTL_S, JOB_PREFIX]
        )
        if reserved is None:
            raise IdempotencyConflict("This Idempotency-Key was used for a different request; use a new one.")
        job_id, state = reserved
        if state == "removed":
            raise IdempotencyConflict("The job created with this Idempotency-Key was deleted; use a new one.")
        return job_id, state == "exists"

    def entry(self, record: Record) -> str:
        """Return the Redis key of the entry that must live as long as the job, or "" if there is none."""
        return idempotency_key(record.owner, record.idempotency) if record.idempotency else ""

    async def mark_removed(self, record: Record) -> None:
        """Record that the job is being deleted. The entry stays for the rest of its 24 hours."""
        entry = self.entry(record)
        if not entry:
            return
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(entry, "removed", "1")
            pipe.expireat(entry, int(record.created_at.timestamp()) + TTL_S)
            await pipe.execute()


def key_of(request: Request) -> str | None:
    """Return the SHA-256 of the request's key, or None if it has none. Raises InvalidOption.

    A key is printable ASCII. The draft standard puts it in quotes; a key with and without quotes is the same key.
    """
    values = request.headers.getlist(HEADER)
    if not values:
        return None
    text = values[0].strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    if len(values) > 1 or not (0 < len(text) <= MAX_CHARS and text.isascii() and text.isprintable()):
        raise InvalidOption(f"Idempotency-Key: must be sent once, with 1 to {MAX_CHARS} printable ASCII characters")
    return hashlib.sha256(text.encode()).hexdigest()


def _fingerprint(record: Record) -> str:
    """Return a hash that two requests share exactly if they ask for the same job.

    Options with their default value are left out, so that a new option does not change the hash of requests without it.
    """
    per_request = {"id": True, "created_at": True, "owner": True, "idempotency": True, "source": True}
    source = record.source and record.source.model_dump_json(include={"filename", "url", "sha256"})
    text = f"{record.model_dump_json(exclude=per_request, exclude_defaults=True)}{source}"
    return hashlib.sha256(text.encode()).hexdigest()
