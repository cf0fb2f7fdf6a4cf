"""Every error that leaves the gateway, as RFC 9457 problem details, from one place."""

import logging
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from service.contract.errors import (
    InvalidOption,
    MethodNotAllowed,
    NotFound,
    QueueUnavailable,
    RateLimited,
    RequestError,
    SharecapError,
    Unauthorized,
)
from service.contract.jobs import ErrorInfo
from service.contract.store.connection import refuses_now

log = logging.getLogger(__name__)
MEDIA_TYPE = "application/problem+json"
CLIENT_WENT_AWAY = 499


class Problem(BaseModel):
    """What went wrong. `code` is stable; `job` is the job's path where one was made."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    retryable: bool
    job: str | None = None


def problem_of(error: SharecapError) -> Problem:
    return Problem(
        type=f"urn:sharecap:error:{error.code}",
        title=error.title,
        status=error.status,
        detail=error.detail,
        code=error.code,
        retryable=error.retryable,
    )


def answer_of(problem: Problem, headers: dict[str, str] | None = None) -> Response:
    body = problem.model_dump_json(exclude_none=True)
    return Response(body, problem.status, headers=headers, media_type=MEDIA_TYPE)


def answer_of_error(error: SharecapError) -> Response:
    """Return the answer of a request that met `error`, with the headers that belong to it."""
    headers: dict[str, str] = {}
    if isinstance(error, RateLimited):
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = 'Bearer realm="sharecap"'
    return answer_of(problem_of(error), headers)


def answer_of_failed(info: ErrorInfo, job_path: str, headers: dict[str, str]) -> Response:
    """Return the answer of a request that waited for a job which failed."""
    kinds = {kind.code: kind for kind in _leaves(SharecapError)}
    problem = problem_of(kinds.get(info.code, SharecapError)(info.detail))
    return answer_of(problem.model_copy(update={"job": job_path, "retryable": info.retryable}), headers)


def responses(*errors: type[SharecapError]) -> dict[int | str, dict[str, Any]]:
    """Return what a route's OpenAPI entry says of `errors`, and of those that any route can meet."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    codes: dict[int, list[str]] = {}
    kinds: list[type[SharecapError]] = [*errors, InvalidOption, Unauthorized, RateLimited, QueueUnavailable]
    for kind in kinds:
        codes.setdefault(kind.status, []).append(kind.code)
    return {status: {"description": " · ".join(names), "content": content} for status, names in codes.items()}


def install(app: FastAPI) -> None:
    """Make `app` answer every error as a problem, and its OpenAPI document say so."""
    document = app.openapi

    def told() -> dict[str, Any]:
        openapi = document()
        openapi["components"]["schemas"]["Problem"] = Problem.model_json_schema()
        return openapi

    app.openapi = told  # type: ignore[method-assign]

    @app.exception_handler(SharecapError)
    async def known(request: Request, error: SharecapError) -> Response:
        return answer_of_error(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        told = [f"{'.'.join(str(place) for place in e['loc'][1:])}: {e['msg']}" for e in error.errors()]
        return answer_of(problem_of(InvalidOption("; ".join(told))))

    @app.exception_handler(HTTPException)
    async def unrouted(request: Request, error: HTTPException) -> Response:
        if error.status_code == MethodNotAllowed.status:
            known_as: RequestError = MethodNotAllowed(f"{request.url.path} does not take {request.method}.")
        elif error.status_code == NotFound.status:
            known_as = NotFound(f"There is nothing at {request.url.path}.")
        else:
            known_as = InvalidOption(str(error.detail))
        return answer_of(problem_of(known_as), dict(error.headers or {}))

    @app.exception_handler(RedisConnectionError)
    @app.exception_handler(RedisTimeoutError)
    async def queueless(request: Request, error: Exception) -> Response:
        log.warning("Redis: %s", error)
        return answer_of(problem_of(QueueUnavailable("The queue takes nothing at present; try again soon.")))

    @app.exception_handler(ResponseError)
    async def refused(request: Request, error: ResponseError) -> Response:
        if not refuses_now(error):
            raise error
        return await queueless(request, error)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_WENT_AWAY)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return answer_of(problem_of(SharecapError("The service met an error of its own; its log tells more.")))


def _leaves(kind: type[SharecapError]) -> list[type[SharecapError]]:
    return [leaf for child in kind.__subclasses__() for leaf in (_leaves(child) or [child])]
