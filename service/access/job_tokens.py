"""Short-lived tokens that can read one job, for browsers: `EventSource`, `<img>` and `<video>` cannot send an API key.

A token is sent as the query parameter `token`. It is accepted only for reading the job that it was made for, acts as
the API key that made it, and ends with that key. Only its SHA-256 is stored.
"""

import hashlib
import logging
import re
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs

from pydantic import BaseModel
from redis.asyncio import Redis
from starlette.types import Scope

from service.contract.jobs import JOB_ID_PATTERN
from service.contract.store.keys import token_key

TOKEN_TTL_S = 600
MAX_QUERY_BYTES = 4096
_TOKEN = re.compile(r"sct_[0-9a-f]{64}")
_IN_LOG = re.compile(r"sct_[0-9a-f]+")
_READABLE = re.compile(rf"/captions/({JOB_ID_PATTERN})(?:/events|/video|/clips|/keyframes/[^/]+)?")


class JobToken(BaseModel):
    """A new token and the time at which it expires."""

    token: str
    expires_at: datetime


class TokenEntry(BaseModel):
    """What is stored about a token: the job that it can read, and the API key that made it."""

    job: str
    key: str


class JobTokenStore:
    """All reads and writes of tokens. `redis` must decode responses to `str`."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis

    async def add(self, job_id: str, key_id: str) -> JobToken:
        """Create a token with which the job can be read."""
        token = f"sct_{secrets.token_hex(32)}"
        entry = TokenEntry(job=job_id, key=key_id)
        await self._redis.set(_stored_key(token), entry.model_dump_json(), ex=TOKEN_TTL_S)
        return JobToken(token=token, expires_at=datetime.now(UTC) + timedelta(seconds=TOKEN_TTL_S))

    async def key_id_of(self, token: str, job_id: str) -> str | None:
        """Return the id of the API key that made the token, None if the token cannot read this job."""
        text = await self._redis.get(_stored_key(token)) if _TOKEN.fullmatch(token) else None
        entry = TokenEntry.model_validate_json(text) if text else None
        return entry.key if entry is not None and entry.job == job_id else None


def token_in(scope: Scope) -> tuple[str, str] | None:
    """Return the token in the query of a request and the job that the request reads.

    Returns None if the request has no token, or does something else than reading one job.
    """
    match = _READABLE.fullmatch(scope["path"])
    query: bytes = scope["query_string"]
    if match is None or scope["method"] not in ("GET", "HEAD") or len(query) > MAX_QUERY_BYTES:
        return None
    tokens = parse_qs(query.decode("ascii", "replace")).get("token", [])
    return (tokens[0], match[1]) if len(tokens) == 1 else None


def hide_tokens(record: logging.LogRecord) -> bool:
    """Replace the tokens in a line of the access log, which contains the address of the request. A logging filter."""
    if isinstance(record.args, tuple):
        record.args = tuple(_IN_LOG.sub("sct_…", arg) if isinstance(arg, str) else arg for arg in record.args)
    return True


def _stored_key(token: str) -> str:
    return token_key(hashlib.sha256(token.encode()).hexdigest())
