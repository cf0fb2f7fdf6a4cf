"""Errors of the client: one class for each error `code` of the service.

    SharecapError
    ├── ServiceUnreachable      no answer: the service does not run, or the URL is wrong
    ├── UnexpectedAnswer        an answer that a sharecap service would not give, for example from a proxy
    ├── InvalidWebhook          a webhook that the service did not send
    ├── JobCancelled            `wait`: the job was cancelled
    └── ApiError                the service refused a request, or a job failed
        └── Unauthorized, NotFound, InvalidOption, …    one class for each `code`

A newer service may send a `code` that this version does not know; that is a plain `ApiError`. A test compares the codes
with the service's.
"""

from typing import ClassVar

RETRYABLE_STATUSES = frozenset({502, 503, 504})
"""Answers of proxies that a repeated request may not meet again."""


class SharecapError(Exception):
    """Base of all errors. `detail` says what is wrong; `job_id` is the job that it is about, if there is one."""

    retryable = False
    """Whether the same request can succeed later."""
    retry_after_s: float | None = None

    def __init__(self, detail: str, *, job_id: str | None = None) -> None:
        super().__init__(detail)
        self.detail, self.job_id = detail, job_id


class ServiceUnreachable(SharecapError):
    """The service did not answer."""

    retryable = True


class UnexpectedAnswer(SharecapError):
    """The server at this URL is not a sharecap service, or something between the client and the service failed."""

    def __init__(self, detail: str, status: int | None = None) -> None:
        super().__init__(detail)
        self.status, self.retryable = status, status in RETRYABLE_STATUSES


class InvalidWebhook(SharecapError):
    """The webhook is not signed with the secret, or it is too old."""


class JobCancelled(SharecapError):
    """The job was cancelled."""


class ApiError(SharecapError):
    """The service refused a request, or a job failed. `status` is None for the error of a job.

    Subclasses set `CODE`. `code` is also set if this version does not know it.
    """

    CODE: ClassVar[str] = ""

    def __init__(
        self,
        detail: str,
        *,
        code: str = "",
        status: int | None = None,
        retryable: bool = False,
        retry_after_s: float | None = None,
        job_id: str | None = None,
    ) -> None:
        super().__init__(detail, job_id=job_id)
        self.code = code or self.CODE
        self.status, self.retryable, self.retry_after_s = status, retryable, retry_after_s

    def __str__(self) -> str:
        return f"{self.detail} ({self.code})"


class InternalError(ApiError):
    CODE = "internal"


class Unauthorized(ApiError):
    CODE = "unauthorized"


class NotFound(ApiError):
    CODE = "not_found"


class MethodNotAllowed(ApiError):
    CODE = "method_not_allowed"


class MalformedEventId(ApiError):
    CODE = "malformed_event_id"


class RequestTimeout(ApiError):
    CODE = "request_timeout"


class HeadTooLarge(ApiError):
    CODE = "head_too_large"


class InvalidOption(ApiError):
    CODE = "invalid_option"


class UnsupportedMedia(ApiError):
    CODE = "unsupported_media"


class NotAVideo(ApiError):
    CODE = "not_a_video"


class VideoTooLarge(ApiError):
    CODE = "video_too_large"


class VideoTooLong(ApiError):
    CODE = "video_too_long"


class UrlForbidden(ApiError):
    CODE = "url_forbidden"


class UrlUnreachable(ApiError):
    CODE = "url_unreachable"


class IdempotencyConflict(ApiError):
    CODE = "idempotency_conflict"


class RateLimited(ApiError):
    """`retry_after_s` is the time after which the service suggests to try again."""

    CODE = "rate_limited"


class StorageFull(ApiError):
    CODE = "storage_full"


class QueueUnavailable(ApiError):
    CODE = "queue_unavailable"


class NoWorker(ApiError):
    CODE = "no_worker"


class DecodeFailed(ApiError):
    CODE = "decode_failed"


class AttemptsExhausted(ApiError):
    CODE = "attempts_exhausted"


class EngineFailed(ApiError):
    CODE = "engine_failed"


class DeadlineExceeded(ApiError):
    CODE = "deadline_exceeded"


ERRORS_BY_CODE: dict[str, type[ApiError]] = {kind.CODE: kind for kind in ApiError.__subclasses__()}


def error_class(code: str) -> type[ApiError]:
    """Return the class of errors with this code, `ApiError` for a code that this version does not know."""
    return ERRORS_BY_CODE.get(code, ApiError)
