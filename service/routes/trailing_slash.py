"""Redirects of paths with a trailing slash: `/captions/` to `/captions`.

The target is relative to the requested path, so it never leaves this host. Starlette's own redirect names the host in
the client's `Host` header, which may be any host, and it is wrong behind a proxy that changes the scheme or the path.
"""

from urllib.parse import quote

from fastapi import FastAPI, Response
from starlette.routing import Match
from starlette.types import Receive, Scope, Send


def install(app: FastAPI) -> None:
    """Replace Starlette's redirects in `app`."""
    router = app.router
    router.redirect_slashes = False
    not_found = router.default

    async def redirect_or_not_found(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        target = {**scope, "path": path.removesuffix("/")}
        exists = path.endswith("/") and any(route.matches(target)[0] is not Match.NONE for route in router.routes)
        answer = Response(status_code=307, headers={"Location": _relative_target(scope)}) if exists else not_found
        await answer(scope, receive, send)

    router.default = redirect_or_not_found


def _relative_target(scope: Scope) -> str:
    name = quote(scope["path"].removesuffix("/").rpartition("/")[2], safe="")
    query = scope["query_string"].decode("latin-1")
    return f"../{name}?{query}" if query else f"../{name}"
