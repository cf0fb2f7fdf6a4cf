"""Authentication: a middleware that checks the API key of every request before its body is read.

Until the first key is created, the service is open and binds to loopback only, and `service.access.origins` refuses
pages of other sites, also with `ALLOW_PUBLIC_BIND`. Once a key was created, every request needs one, even if all keys
are revoked. A service that binds to more than loopback without `ALLOW_PUBLIC_BIND` always needs a key.
"""

import re
import time
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from redis.exceptions import RedisError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.access.api_keys import ApiKey, ApiKeyStore, key_id_of
from service.access.job_tokens import JobTokenStore, token_in
from service.access.origins import OriginCheck
from service.access.rate_limits import RateLimits
from service.contract.errors import QueueUnavailable, SharecapError, Unauthorized
from service.contract.store.connection import connect
from service.problems import error_response
from service.settings import Settings

OPEN_PATHS = re.compile(r"/|/web/[^/]+|/healthz|/readyz|/docs|/openapi\.json")
"""Paths that need no key: they reveal nothing about any job."""
NOT_ADMITTED = (
    "Until an API key is created, this service accepts requests only to a loopback host name and from its own page. "
    "Create a key, or set TRUSTED_HOSTS or ALLOWED_ORIGINS."
)
CACHE_S = 2.0
"""How long a key is cached. A revoked key stops working after at most this time."""


class Authenticator:
    """Decides which requests of one gateway are admitted."""

    def __init__(
        self,
        keys: ApiKeyStore,
        tokens: JobTokenStore,
        limits: RateLimits,
        origins: OriginCheck,
        *,
        always_closed: bool,
    ) -> None:
        self._keys, self._tokens, self._limits, self._origins = keys, tokens, limits, origins
        self._closed = always_closed
        self._checked_at = float("-inf")
        self._cache: dict[str, tuple[ApiKey, float]] = {}

    async def admit(self, scope: Scope) -> ApiKey | None:
        """Return the API key of a request, or None if the service is open.

        Raises Unauthorized, RateLimited and redis.RedisError.
        """
        headers = Headers(scope=scope)
        if not await self._needs_key():
            if not self._origins.admits(headers):
                raise Unauthorized(NOT_ADMITTED)
            return None
        if "authorization" not in headers and (token := token_in(scope)) is not None:
            key = await self._find_token(*token)
        else:
            key = await self._find_key(_bearer_token(headers))
        if key is None:
            raise Unauthorized("This API key is not valid.")
        await self._limits.count_request(key)
        return key

    async def _needs_key(self) -> bool:
        """Return whether requests need a key. Once they do, that holds for the life of the process."""
        if not self._closed and time.monotonic() - self._checked_at > CACHE_S:
            self._closed = await self._keys.any_created()
            self._checked_at = time.monotonic()
        return self._closed

    async def _find_key(self, text: str) -> ApiKey | None:
        key_id = key_id_of(text)
        key = await self._cached_key(key_id) if key_id else None
        return key if key is not None and key.accepts(text) else None

    async def _find_token(self, token: str, job_id: str) -> ApiKey | None:
        """Return the API key that made the token. Raises Unauthorized if the token cannot read this job."""
        key_id = await self._tokens.key_id_of(token, job_id)
        key = await self._cached_key(key_id) if key_id else None
        if key is None or key.revoked_at is not None:
            raise Unauthorized("This token has expired or is for another job.")
        return key

    async def _cached_key(self, key_id: str) -> ApiKey | None:
        key, expires_at = self._cache.get(key_id, (None, 0.0))
        if key is None or expires_at < time.monotonic():
            self._cache.pop(key_id, None)
            key = await self._keys.find(key_id)
            if key is not None:
                self._cache[key_id] = key, time.monotonic() + CACHE_S
        return key


class AuthenticationMiddleware:
    """Stores the request's API key for `CallerKey`, or answers with the error."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                key = await _authenticate(scope)
            except SharecapError as error:
                await error_response(error)(scope, receive, send)
                return
            scope.setdefault("state", {})["key"] = key
        await self._app(scope, receive, send)


def install(app: FastAPI) -> None:
    """Add the middleware to `app` and describe the authentication in its OpenAPI document."""
    app.add_middleware(AuthenticationMiddleware)
    build_openapi = app.openapi

    def openapi_with_security() -> dict[str, Any]:
        openapi = build_openapi()
        schemes = openapi["components"].setdefault("securitySchemes", {})
        description = "An API key: `sharecap keys add NAME --data-dir DIR`"
        schemes["key"] = {"type": "http", "scheme": "bearer", "description": description}
        openapi["security"] = [{"key": []}, {}]
        return openapi

    app.openapi = openapi_with_security  # type: ignore[method-assign]


async def has_valid_key(settings: Settings) -> bool:
    """Return whether at least one key exists that is not revoked. Raises redis.RedisError."""
    async with connect(settings.redis_url, socket_connect_timeout=2, socket_timeout=5) as redis:
        return any(key.revoked_at is None for key in await ApiKeyStore(redis).all())


async def _authenticate(scope: Scope) -> ApiKey | None:
    if OPEN_PATHS.fullmatch(scope["path"]):
        return None
    try:
        authenticator: Authenticator = scope["app"].state.gateway.authenticator
        return await authenticator.admit(scope)
    except (RedisError, OSError) as error:
        raise QueueUnavailable("API keys cannot be checked at the moment; try again soon.") from error


def _bearer_token(headers: Headers) -> str:
    """Return the token of the `Authorization` header, or "" if the header is not a single bearer token.

    Raises Unauthorized if the header is missing.
    """
    values = headers.getlist("authorization")
    if not values:
        raise Unauthorized("Send an API key: `Authorization: Bearer sc_…`.")
    scheme, _, token = values[0].partition(" ")
    return token.strip() if len(values) == 1 and scheme.lower() == "bearer" else ""


def _key_of(request: Request) -> ApiKey | None:
    key: ApiKey | None = request.state.key
    return key


CallerKey = Annotated[ApiKey | None, Depends(_key_of)]
"""The API key of the request; None if the service is open."""
