"""Turns every error into the response of the gateway: RFC 9457 problem details. No other module builds them."""

import logging
from typing import Any, cast

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from service.contract.errors import (
    AttemptsExhausted,
    DeadlineExceeded,
    EngineFailed,
    InvalidOption,
    MethodNotAllowed,
    NotFound,
    QueueUnavailable,
    RateLimited,
    RequestError,
    SharecapError,
    StorageFull,
    Unauthorized,
)
from service.contract.jobs import ErrorInfo
from service.contract.store.retry import refuses_writes
from service.intake.memory import MEMORY_FULL

log = logging.getLogger(__name__)
JOB_ERRORS = (AttemptsExhausted, EngineFailed, DeadlineExceeded)
"""How a job of any kind can fail while a request waits for it."""
MEDIA_TYPE = "application/problem+json"
CLIENT_CLOSED_REQUEST = 499


class Problem(BaseModel):
    """An error response."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str
    """`urn:sharecap:error:` and the code."""
    title: str
    """What the code means."""
    status: int
    """The HTTP status."""
    detail: str
    """What is wrong with this request, and what would be valid."""
    code: str
    """Stable name of the error. Programs should decide by this field."""
    retryable: bool
    """Whether the same request can succeed later."""
    job: str | None = None
    """Path of the job that failed, if one was created."""


def error_response(error: SharecapError) -> Response:
    """Return the response for `error`, with the headers that belong to it."""
    headers: dict[str, str] = {}
    if isinstance(error, RateLimited):
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = 'Bearer realm="sharecap"'
    return _problem_response(_problem(type(error), error.detail), headers)


def failed_job_response(info: ErrorInfo, job_path: str, headers: dict[str, str]) -> Response:
    """Return the response of a request that waited for a job, after the job has failed."""
    classes = {kind.code: kind for kind in _leaf_classes(SharecapError)}
    problem = _problem(classes.get(info.code, SharecapError), info.detail)
    return _problem_response(problem.model_copy(update={"job": job_path, "retryable": info.retryable}), headers)


def responses(*errors: type[SharecapError]) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses of a route that can raise `errors`, including those that any route can raise."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    codes: dict[int, list[str]] = {}
    common = (InvalidOption, Unauthorized, RateLimited, QueueUnavailable, SharecapError)
    kinds: list[type[SharecapError]] = [*errors, *common]
    for kind in kinds:
        codes.setdefault(kind.status, []).append(kind.code)
    return {status: {"description": " · ".join(names), "content": content} for status, names in codes.items()}


def install(app: FastAPI) -> None:
    """Make `app` answer every error as a problem, and describe problems in its OpenAPI document."""
    _describe_problems(app)
    app.add_exception_handler(SharecapError, _on_sharecap_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RedisConnectionError, _on_redis_unavailable)
    app.add_exception_handler(RedisTimeoutError, _on_redis_unavailable)
    app.add_exception_handler(ResponseError, _on_redis_response_error)
    app.add_exception_handler(ClientDisconnect, _on_client_disconnect)
    app.add_exception_handler(Exception, _on_unexpected_error)


def _describe_problems(app: FastAPI) -> None:
    build_openapi = app.openapi

    def openapi_with_problems() -> dict[str, Any]:
        openapi = build_openapi()
        openapi["components"]["schemas"]["Problem"] = Problem.model_json_schema()
        return openapi

    app.openapi = openapi_with_problems  # type: ignore[method-assign]


async def _on_sharecap_error(request: Request, error: Exception) -> Response:
    return error_response(cast(SharecapError, error))


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    errors = cast(RequestValidationError, error).errors()
    detail = "; ".join(f"{'.'.join(str(part) for part in e['loc'][1:])}: {e['msg']}" for e in errors)
    return error_response(InvalidOption(detail))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    error = cast(HTTPException, error)
    answer = _routing_error(request, error)
    return _problem_response(_problem(type(answer), answer.detail), dict(error.headers or {}))


def _routing_error(request: Request, error: HTTPException) -> RequestError:
    if error.status_code == MethodNotAllowed.status:
        return MethodNotAllowed(f"{request.url.path} does not support {request.method}.")
    if error.status_code == NotFound.status:
        return NotFound(f"{request.url.path} does not exist.")
    return InvalidOption(str(error.detail))


async def _on_redis_unavailable(request: Request, error: Exception) -> Response:
    log.warning("Redis is unavailable: %s", error)
    return error_response(QueueUnavailable("The queue is unavailable at the moment; try again soon."))


async def _on_redis_response_error(request: Request, error: Exception) -> Response:
    if isinstance(error, OutOfMemoryError):
        return error_response(StorageFull(MEMORY_FULL))
    if not refuses_writes(cast(ResponseError, error)):
        raise error
    return await _on_redis_unavailable(request, error)


async def _on_client_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _on_unexpected_error(request: Request, error: Exception) -> Response:
    response = error_response(SharecapError("The service has met an internal error; see its log."))
    response.headers["Connection"] = "close"  # starlette raises the error again, and uvicorn closes the connection
    return response


def _problem(kind: type[SharecapError], detail: str) -> Problem:
    return Problem(
        type=f"urn:sharecap:error:{kind.code}",
        title=kind.title,
        status=kind.status,
        detail=detail,
        code=kind.code,
        retryable=kind.retryable,
    )


def _problem_response(problem: Problem, headers: dict[str, str]) -> Response:
    body = problem.model_dump_json(exclude_none=True)
    return Response(body, problem.status, headers=headers, media_type=MEDIA_TYPE)


def _leaf_classes(kind: type[SharecapError]) -> list[type[SharecapError]]:
    return [leaf for child in kind.__subclasses__() for leaf in (_leaf_classes(child) or [child])]
