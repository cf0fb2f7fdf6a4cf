"""API keys in Redis: who may use the service, and the limits of each key.

A key consists of a public id, which names it in the store and in listings, and 256 random bits. Only the SHA-256 of the
whole key is stored, so the key is shown once, when it is created. The entry of a revoked key is kept: a service that
has had keys never becomes open again.
"""

import hashlib
import hmac
import re
import secrets
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, PositiveInt
from redis.asyncio import Redis

from service.contract.settings import GIB
from service.contract.store.keys import API_KEYS, api_key_key

MIB = 1 << 20
_KEY = re.compile(r"(sc_[0-9a-f]{12})_[0-9a-f]{64}")


class KeyLimits(BaseModel):
    """The limits of one key. None means unlimited."""

    model_config = ConfigDict(frozen=True)

    requests_per_minute: PositiveInt | None = 600
    upload_bytes_per_day: PositiveInt | None = 100 * GIB
    jobs: PositiveInt | None = 100
    """Jobs that are queued or running."""
    jobs_per_hour: PositiveInt | None = 1000
    """Jobs created, including cancelled and deleted ones."""
    stored_bytes: PositiveInt | None = 512 * MIB
    """Bytes in Redis that all jobs of the key occupy until they expire or are deleted."""
    streams: PositiveInt | None = 100
    """Open event streams."""


class ApiKey(BaseModel):
    """The stored entry of one key. The secret part of the key cannot be derived from it."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    sha256: str
    limits: KeyLimits
    created_at: datetime
    revoked_at: datetime | None = None

    def accepts(self, text: str) -> bool:
        """Return whether `text` is this key and the key is not revoked. Compares in constant time."""
        return hmac.compare_digest(_sha256(text), self.sha256) and self.revoked_at is None


class ApiKeyStore:
    """All reads and writes of API keys. `redis` must decode responses to `str`."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis

    async def add(self, name: str, limits: KeyLimits) -> tuple[ApiKey, str]:
        """Create a key. Returns its entry and the key itself, which cannot be retrieved later."""
        key, text = new_key(name, limits)
        await self.store(key)
        return key, text

    async def store(self, key: ApiKey) -> None:
        """Store a new key: from now on it is accepted, and every request needs a key."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(api_key_key(key.id), key.model_dump_json())
            pipe.zadd(API_KEYS, {key.id: key.created_at.timestamp()})
            await pipe.execute()

    async def find(self, key_id: str) -> ApiKey | None:
        text = await self._redis.get(api_key_key(key_id))
        return ApiKey.model_validate_json(text) if text else None

    async def all(self) -> list[ApiKey]:
        """Return all keys ever created, oldest first."""
        keys = [await self.find(key_id) for key_id in await self._redis.zrange(API_KEYS, 0, -1)]
        return [key for key in keys if key is not None]

    async def revoke(self, key_id: str) -> ApiKey | None:
        """Revoke a key. Returns its entry, or None if the id is unknown."""
        key = await self.find(key_id)
        if key is not None and key.revoked_at is None:
            key = key.model_copy(update={"revoked_at": datetime.now(UTC)})
            await self._redis.set(api_key_key(key_id), key.model_dump_json())
        return key

    async def any_created(self) -> bool:
        """Return whether a key was ever created, including keys revoked since."""
        return bool(await self._redis.exists(API_KEYS))


def new_key(name: str, limits: KeyLimits) -> tuple[ApiKey, str]:
    """Return the entry of a new key, which is not stored yet, and the key itself."""
    key_id = f"sc_{secrets.token_hex(6)}"
    text = f"{key_id}_{secrets.token_hex(32)}"
    return ApiKey(id=key_id, name=name, sha256=_sha256(text), limits=limits, created_at=datetime.now(UTC)), text


def key_id_of(text: str) -> str | None:
    """Return the public id contained in a key, or None if the text does not have the form of a key."""
    match = _KEY.fullmatch(text)
    return match.group(1) if match else None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
