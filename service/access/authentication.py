"""Who may come in: every request meets this before anything of its body is read.

While no key was ever made, whoever reaches the service may use it; that is why it then listens on loopback only. From
the first key on each request needs one, also when all are revoked. Where the service is bound to more than loopback,
and nothing else is said to keep strangers out, it needs one always.
On loopback without keys, a browser's pages from elsewhere are refused.
"""

import re
import time
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, FastAPI, Request
from redis.exceptions import RedisError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.access.keys import Key, Keys, id_in
from service.access.rate_limits import Limits
from service.contract.errors import QueueUnavailable, SharecapError, Unauthorized
from service.contract.store.connection import connect
from service.problems import answer_of_error
from service.settings import Settings, is_loopback

OPEN = re.compile(r"/|/web/[^/]+|/healthz|/readyz|/docs|/docs/oauth2-redirect|/redoc|/openapi\.json")
"""What anybody may have: it tells nothing of any job."""
UNKNOWN = "API keys cannot be looked up now; try again soon."
KNOWN_FOR_S = 2.0
"""How long a key is believed without asking Redis again: a revoked one ends after that."""


class Authenticator:
    """Lets requests in, for one gateway."""

    def __init__(self, keys: Keys, limits: Limits, *, always_closed: bool, local: bool) -> None:
        self._keys, self._limits, self._local = keys, limits, local
        self._closed = always_closed
        self._looked_at = float("-inf")
        self._known: dict[str, tuple[Key, float]] = {}

    async def admit(self, headers: Headers) -> Key | None:
        """Return the key of a request with these headers; none where no key is needed.

        Raises Unauthorized, RateLimited, redis.RedisError.
        """
        if not await self._needs_key():
            if self._local and not _comes_from_here(headers):
                raise Unauthorized("Without an API key this service answers to this machine's own pages and programs.")
            return None
        authorization = headers.getlist("authorization")
        if not authorization:
            raise Unauthorized("Send an API key: `Authorization: Bearer sc_…`.")
        scheme, _, text = authorization[0].partition(" ")
        key = await self._key(text.strip()) if len(authorization) == 1 and scheme.lower() == "bearer" else None
        if key is None:
            raise Unauthorized("This is no valid API key.")
        await self._limits.request(key)
        return key

    async def _needs_key(self) -> bool:
        """Once there was a key, this stays so for the process's life."""
        if not self._closed and time.monotonic() - self._looked_at > KNOWN_FOR_S:
            self._closed = await self._keys.ever_made()
            self._looked_at = time.monotonic()
        return self._closed

    async def _key(self, text: str) -> Key | None:
        key_id = id_in(text)
        if key_id is None:
            return None
        key, till = self._known.get(key_id, (None, 0.0))
        if key is None or till < time.monotonic():
            self._known.pop(key_id, None)
            key = await self._keys.find(key_id)
            if key is not None:
                self._known[key_id] = key, time.monotonic() + KNOWN_FOR_S
        return key if key is not None and key.opens_with(text) else None


class Authenticate:
    """The middleware: puts the request's key where `Caller` finds it, or answers with what is wrong."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            key: Key | None = None
            if not OPEN.fullmatch(scope["path"]):
                try:
                    key = await scope["app"].state.gateway.door.admit(Headers(scope=scope))
                except (SharecapError, RedisError, OSError) as error:
                    known = error if isinstance(error, SharecapError) else QueueUnavailable(UNKNOWN)
                    await answer_of_error(known)(scope, receive, send)
                    return
            scope.setdefault("state", {})["key"] = key
        await self._app(scope, receive, send)


def install(app: FastAPI) -> None:
    """Make `app` ask for keys, and its OpenAPI document say so."""
    app.add_middleware(Authenticate)
    document = app.openapi

    def told() -> dict[str, Any]:
        openapi = document()
        schemes = openapi["components"].setdefault("securitySchemes", {})
        schemes["key"] = {"type": "http", "scheme": "bearer", "description": "An API key: `sharecap keys add NAME`"}
        openapi["security"] = [{"key": []}, {}]
        return openapi

    app.openapi = told  # type: ignore[method-assign]


async def some_key_opens(settings: Settings) -> bool:
    """Whether there is a key that lets anybody in. Raises redis.RedisError."""
    async with connect(settings.redis_url, socket_connect_timeout=2, socket_timeout=5) as redis:
        return any(key.revoked_at is None for key in await Keys(redis).all())


def _comes_from_here(headers: Headers) -> bool:
    """Whether a request names this machine, and so does the page that sent it: no page of elsewhere may, by a name
    of its own that it makes mean this machine, or by a form.
    """
    origin = headers.get("origin")
    try:
        names = [urlsplit(f"//{headers.get('host', '')}").hostname, *([urlsplit(origin).hostname] if origin else [])]
    except ValueError:
        return False
    return all(is_loopback(name or "") for name in names)


def _key_of(request: Request) -> Key | None:
    key: Key | None = request.state.key
    return key


CallerKey = Annotated[Key | None, Depends(_key_of)]
"""The key that the request came with; none where it needs none."""
