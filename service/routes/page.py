"""The web page and the page of the API, `/docs`: static files that need no API key, because the pages ask for the key.

Their Content-Security-Policy allows only the files served here: no inline scripts or styles, and no other hosts. Only
the player may load a video from elsewhere: from the URL of a job, once the user presses play. The files served here
are those of `service/web`, and Swagger UI from the package `fastapi_offline`, whose Python code is not used.
"""

from fastapi import APIRouter, Request, Response
from starlette.staticfiles import StaticFiles

router = APIRouter(include_in_schema=False)
FILES = StaticFiles(packages=[("service", "web"), ("fastapi_offline", "static")])
HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' blob: data:",  # Swagger UI's style sheet contains images
            "media-src 'self' blob: http: https:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


@router.api_route("/", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    """Return the page."""
    return await _file("index.html", request)


@router.api_route("/docs", methods=["GET", "HEAD"])
async def docs(request: Request) -> Response:
    """Return the page of the API."""
    return await _file("docs.html", request)


@router.api_route("/web/{name}", methods=["GET", "HEAD"])
async def asset(name: str, request: Request) -> Response:
    """Return one of the pages' files."""
    return await _file(name, request)


async def _file(name: str, request: Request) -> Response:
    response = await FILES.get_response(name, request.scope)
    response.headers.update(HEADERS)
    return response
