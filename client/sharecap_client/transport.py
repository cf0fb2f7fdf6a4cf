"""Sends requests to a service, repeats them if that is safe, and turns answers into errors.

A `POST` carries an `Idempotency-Key`, so repeating it after a lost answer does not create a second job. A service that
never answered is not tried again: the URL is probably wrong, or the service does not run.
"""

import asyncio
import random
from collections.abc import Mapping
from typing import Any, cast
from uuid import uuid4

import httpx

from sharecap_client.errors import ServiceUnreachable, SharecapError, StorageFull, UnexpectedAnswer, error_class
from sharecap_client.uploads import ThreadedBody

CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 120.0
"""How long an answer, or taking the next part of an upload, may take."""
FIRST_DELAY_S, MAX_DELAY_S = 0.5, 30.0
"""The delay before the first repetition. It doubles with each further one."""
MAX_RETRY_AFTER_S = 60.0
"""If the service suggests a longer delay, the error is raised at once."""


class Transport:
    """Requests to the service at `url`."""

    def __init__(
        self, url: str, api_key: str | None, retries: int, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self.url = normal_url(url)
        self._retries = retries
        self.reached = False
        """Whether the service has ever answered."""
        self.http = httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, pool=None),
            limits=httpx.Limits(max_connections=None),
            transport=transport,
        )

    async def get(self, path: str, **params: object) -> dict[str, Any]:
        """Return the JSON object at `path`. Parameters that are None are left out."""
        given = {name: str(value) for name, value in params.items() if value is not None}
        return self._object(await self.request("GET", path, params=given))

    async def post(self, path: str, key: str | None = None, **arguments: Any) -> dict[str, Any]:
        """Return the JSON object that answers the `POST`. `key` is its Idempotency-Key, by default a new one."""
        headers = {"Idempotency-Key": key or uuid4().hex, **arguments.pop("headers", {})}
        return self._object(await self.request("POST", path, headers=headers, **arguments))

    async def request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """Return the successful response, after repeating the request if necessary. Raises SharecapError."""
        for attempt in range(self._retries + 1):
            try:
                return await self._send(method, path, arguments)
            except SharecapError as error:
                if attempt == self._retries or not self._may_repeat(error):
                    raise
                await asyncio.sleep(delay_s(attempt, error))
        raise AssertionError("unreachable")

    async def _send(self, method: str, path: str, arguments: Mapping[str, Any]) -> httpx.Response:
        uploads = "files" in arguments
        try:
            request = self.http.build_request(method, path, **arguments)
            if uploads:
                request.stream = ThreadedBody(cast(httpx.SyncByteStream, request.stream))
            response = await self.http.send(request)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            if uploads and self._is_cut(error):
                await self._check_refusal()
            raise self.unreachable(error) from error
        self.reached = True
        if not response.is_success:
            raise error_of(response)
        return response

    async def _check_refusal(self) -> None:
        """Raise the error of a service that refuses every request, for example because the key is not valid.

        It may have refused the upload and closed the connection before httpx read why. This request has no body.
        """
        await self._send("GET", "/captions", {"params": {"limit": "1"}})

    def _is_cut(self, error: Exception) -> bool:
        return isinstance(error, httpx.TransportError) and not isinstance(error, httpx.ConnectError)

    def _may_repeat(self, error: SharecapError) -> bool:
        if not error.retryable or isinstance(error, StorageFull):
            return False
        if isinstance(error, ServiceUnreachable) and not self.reached:
            return False
        return error.job_id is None and (error.retry_after_s or 0) <= MAX_RETRY_AFTER_S

    def unreachable(self, reason: object) -> ServiceUnreachable:
        """Return the error for a request without a complete answer."""
        problem = "lost the connection to" if self.reached else "cannot reach"
        return ServiceUnreachable(f"{problem} {self.url}: {str(reason) or type(reason).__name__}")

    def _object(self, response: httpx.Response) -> dict[str, Any]:
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            detail = f"{self.url} is not a sharecap service: it did not answer with a JSON object"
            raise UnexpectedAnswer(detail, response.status_code)
        return answer


def normal_url(url: str) -> str:
    """Return the URL with a scheme (`http` by default) and without a slash at its end."""
    return (url if "://" in url else f"http://{url}").rstrip("/")


def delay_s(attempt: int, error: SharecapError) -> float:
    """Return the delay after this failed attempt, counted from 0. A random part keeps clients from acting in step."""
    delay: float = min(FIRST_DELAY_S * 2**attempt, MAX_DELAY_S) * random.uniform(0.75, 1.25)
    return max(delay, error.retry_after_s or 0)


def error_of(response: httpx.Response) -> SharecapError:
    """Return the error for an unsuccessful response whose body has been read."""
    try:
        problem = response.json()
        code, detail = str(problem["code"]), str(problem["detail"])
    except (ValueError, KeyError, TypeError):
        text = f"{response.status_code} {response.reason_phrase} from {response.url}"
        return UnexpectedAnswer(text, response.status_code)
    return error_class(code)(
        detail,
        code=code,
        status=response.status_code,
        retryable=problem.get("retryable") is True,
        retry_after_s=_retry_after_s(response),
        job_id=str(problem["job"]).rpartition("/")[2] if "job" in problem else None,
    )


def _retry_after_s(response: httpx.Response) -> float | None:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else None
