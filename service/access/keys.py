"""API keys as Redis keeps them: who may come in, and how much each may do.

    sharecap:keys      zset    ids of all keys ever made, by the time of that (s)
    sharecap:key:{id}  string  the key's entry (JSON)

A key is its public id, by which it is found and told of, and 256 random bits. Only the SHA-256 of the whole is kept: it
is shown once. A revoked key's entry stays, so that a service which has had keys never stands open again.
"""

import hashlib
import hmac
import re
import secrets
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from redis.asyncio import Redis

KEYS = "sharecap:keys"
GIB = 1 << 30
_KEY = re.compile(r"(sc_[0-9a-f]{12})_[0-9a-f]{64}")

Count = Annotated[int, Field(gt=0)]


class KeyLimits(BaseModel):
    """The most that one key may do; none is no limit."""

    model_config = ConfigDict(frozen=True)

    requests_per_minute: Count | None = 600
    upload_bytes_per_day: Count | None = 100 * GIB
    jobs: Count | None = 100
    """Queued and running ones."""
    streams: Count | None = 100
    """Open event streams."""


class Key(BaseModel):
    """One key's entry. The key itself cannot be had from it."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    sha256: str
    limits: KeyLimits
    created_at: datetime
    revoked_at: datetime | None = None

    def opens_with(self, text: str) -> bool:
        """Whether `text` is this key and it is not revoked; takes as long for every wrong one."""
        return hmac.compare_digest(_sha256(text), self.sha256) and self.revoked_at is None


class Keys:
    """All reads and writes of keys. `redis` must decode responses to `str`."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis

    async def add(self, name: str, limits: KeyLimits) -> tuple[Key, str]:
        """Make a key; return its entry and the key itself, which nobody can ask for again."""
        key_id = f"sc_{secrets.token_hex(6)}"
        text = f"{key_id}_{secrets.token_hex(32)}"
        key = Key(id=key_id, name=name, sha256=_sha256(text), limits=limits, created_at=datetime.now(UTC))
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(_entry(key_id), key.model_dump_json())
            pipe.zadd(KEYS, {key_id: key.created_at.timestamp()})
            await pipe.execute()
        return key, text

    async def find(self, key_id: str) -> Key | None:
        text = await self._redis.get(_entry(key_id))
        return Key.model_validate_json(text) if text else None

    async def all(self) -> list[Key]:
        """Return every key ever made, oldest first."""
        found = [await self.find(key_id) for key_id in await self._redis.zrange(KEYS, 0, -1)]
        return [key for key in found if key is not None]

    async def revoke(self, key_id: str) -> Key | None:
        """Let the key open nothing any more; return its entry, None where there is no such key."""
        key = await self.find(key_id)
        if key is not None and key.revoked_at is None:
            key = key.model_copy(update={"revoked_at": datetime.now(UTC)})
            await self._redis.set(_entry(key_id), key.model_dump_json())
        return key

    async def ever_made(self) -> bool:
        """Whether there is or has been any key."""
        return bool(await self._redis.exists(KEYS))


def id_in(text: str) -> str | None:
    """Return the public id in a key, None where the text has not the form of one."""
    match = _KEY.fullmatch(text)
    return match.group(1) if match else None


def _entry(key_id: str) -> str:
    return f"sharecap:key:{key_id}"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
