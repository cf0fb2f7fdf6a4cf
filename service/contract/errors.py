"""All errors that a client can receive. Each has a stable code, an HTTP status, and states whether retrying can help.

    SharecapError
    ├── RequestError            the response is application/problem+json
    │   ├── Unauthorized          401
    │   ├── NotFound              404
    │   │   └── UnreadableJob       404  the same code
    │   ├── MethodNotAllowed      405
    │   ├── MalformedEventId      400
    │   ├── RequestTimeout        408  retryable
    │   ├── HeadTooLarge          431
    │   ├── InvalidOption         422
    │   ├── UnsupportedMedia      415
    │   ├── NotAVideo             422
    │   ├── VideoTooLarge         413
    │   ├── VideoTooLong          422
    │   ├── UrlForbidden          422
    │   ├── UrlUnreachable        502  retryable
    │   ├── IdempotencyConflict   422
    │   ├── RateLimited           429  retryable
    │   ├── StorageFull           507  retryable
    │   ├── QueueUnavailable      503  retryable
    │   └── NoWorker              503  retryable
    └── JobError                reported by the job's `failed` event
        ├── DecodeFailed          422
        │   └── DecoderDied         422  another attempt is made first
        │       └── DecoderKilled     422  retryable; the same
        ├── AttemptsExhausted     500  retryable
        ├── EngineFailed          500  retryable
        └── DeadlineExceeded      504  retryable

If a worker meets a request error, for example because a URL does not lead to a video, the job's `failed` event
reports it too.
"""

from typing import ClassVar


class SharecapError(Exception):
    """Base of all errors. `detail` is written for the client: what is wrong, and what would be valid."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class RequestError(SharecapError):
    """The request is invalid or cannot be served at the moment."""


class JobError(SharecapError):
    """The job was accepted but could not be finished."""


class Unauthorized(RequestError):
    code, status, title = "unauthorized", 401, "A valid API key is required"


class NotFound(RequestError):
    code, status, title = "not_found", 404, "No such resource"


class UnreadableJob(NotFound):
    """The stored data of a job is malformed. The job can only be deleted."""

    def __init__(self) -> None:
        super().__init__("The stored data of this job is unreadable. The job can only be deleted.")


class MethodNotAllowed(RequestError):
    code, status, title = "method_not_allowed", 405, "The resource does not support this method"


class MalformedEventId(RequestError):
    code, status, title = "malformed_event_id", 400, "The event id is malformed"


class RequestTimeout(RequestError):
    code, status, title, retryable = "request_timeout", 408, "The request did not arrive in time", True


class HeadTooLarge(RequestError):
    code, status, title = "head_too_large", 431, "The head of the request is too large"


class InvalidOption(RequestError):
    code, status, title = "invalid_option", 422, "An option is unknown or out of range"


class UnsupportedMedia(RequestError):
    code, status, title = "unsupported_media", 415, "The content type, container or codec is not supported"


class NotAVideo(RequestError):
    code, status, title = "not_a_video", 422, "The file is not a readable video"


class VideoTooLarge(RequestError):
    code, status, title = "video_too_large", 413, "The video has too many bytes or pixels"


class VideoTooLong(RequestError):
    code, status, title = "video_too_long", 422, "The video is too long"


class UrlForbidden(RequestError):
    code, status, title = "url_forbidden", 422, "The URL must not be fetched"


class UrlUnreachable(RequestError):
    code, status, title, retryable = "url_unreachable", 502, "The URL could not be fetched", True


class IdempotencyConflict(RequestError):
    code, status, title = "idempotency_conflict", 422, "The idempotency key cannot be used for this request"


class RateLimited(RequestError):
    """`retry_after_s` is the time after which the client should retry."""

    code, status, title, retryable = "rate_limited", 429, "Too many requests", True

    def __init__(self, detail: str, retry_after_s: int = 1) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class StorageFull(RequestError):
    code, status, title, retryable = "storage_full", 507, "Not enough free space", True


class QueueUnavailable(RequestError):
    code, status, title, retryable = "queue_unavailable", 503, "The queue is unavailable", True


class NoWorker(RequestError):
    code, status, title, retryable = "no_worker", 503, "No worker is ready", True


class DecodeFailed(JobError):
    code, status, title = "decode_failed", 422, "The video could not be decoded"


class DecoderDied(DecodeFailed):
    """A signal ended the decoder, because of the video or because of the machine."""


class DecoderKilled(DecoderDied):
    """SIGKILL ended the probe or the decoder, most likely because the machine ran out of memory."""

    retryable = True

    def __init__(self) -> None:
        super().__init__(
            "The video could not be decoded: its decoder was killed, most likely because the machine ran out of memory."
        )


class AttemptsExhausted(JobError):
    code, status, title, retryable = "attempts_exhausted", 500, "All attempts ended early", True


class EngineFailed(JobError):
    code, status, title, retryable = "engine_failed", 500, "The captioning engine failed", True


class DeadlineExceeded(JobError):
    code, status, title, retryable = "deadline_exceeded", 504, "The job did not end before its deadline", True
