"""Creating jobs: the steps that all routes which create a job have in common.

A route calls `begin` before it reads the body, `submit` once the options are validated, and `job_response` to answer.
Reading jobs is in `service/access/job_access.py`.
"""

import asyncio
import logging
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from fastapi import Request, Response
from redis.exceptions import OutOfMemoryError, RedisError

from service.access.api_keys import ApiKey
from service.access.job_access import load_job, owner_of
from service.contract.errors import InvalidOption, NoWorker, QueueUnavailable, StorageFull
from service.contract.events import fold
from service.contract.jobs import JobKind, JobState, Options, Record, Source, VideoOptions, new_job_id
from service.contract.outbound.ssrf import check_url
from service.contract.store.retry import refuses_writes
from service.contract.store.turns import queue_of
from service.dependencies import Gateway
from service.intake import idempotency
from service.intake.memory import MEMORY_FULL
from service.intake.options import requested_wait_s
from service.intake.uploads import Upload
from service.presentation import job_path, present_job
from service.problems import failed_job_response
from service.settings import Settings

log = logging.getLogger(__name__)
UNDO_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class Submission:
    """What is known about a request for a job before its body is read."""

    key: ApiKey | None
    idempotency: str | None
    """SHA-256 of its `Idempotency-Key`."""
    repeated: bool
    """Whether that `Idempotency-Key` was used before; then the job most likely exists already."""


@dataclass(frozen=True)
class JobRequest:
    """The validated body of a request for a job."""

    kind: JobKind
    options: Options
    metadata: dict[str, str]
    source: Source | None = None
    parent: str | None = None


@dataclass(frozen=True)
class Accepted:
    """The job that belongs to a request: created by it, or by an earlier request with the same `Idempotency-Key`."""

    id: str
    replayed: bool
    record: Record | None = None
    """The record that this request wrote; None if an earlier request created the job."""

    @property
    def headers(self) -> dict[str, str]:
        """Response headers that refer to the job."""
        replayed = {"Idempotency-Replayed": "true"} if self.replayed else {}
        return {"Location": job_path(self.id), **replayed}


async def begin(gateway: Gateway, request: Request, key: ApiKey | None) -> Submission:
    """Check, before the body is read, whether the request may create a job.

    Raises RateLimited, InvalidOption and StorageFull.
    """
    idempotency_key = idempotency.key_of(request)
    repeated = idempotency_key is not None and await gateway.idempotency.is_known(owner_of(key), idempotency_key)
    if not repeated:
        gateway.storage.check_free_space()
        await gateway.rate_limits.check_job(key)
        await gateway.memory.check()
    return Submission(key, idempotency_key, repeated)


async def check_wait_s(gateway: Gateway, request: Request, submission: Submission, default_s: int = 0) -> int:
    """Return how long the request may wait for the job to end.

    Raises NoWorker if it would wait in vain, because no worker is ready.
    """
    wait_s = requested_wait_s(request, default_s)
    if wait_s and not submission.repeated and not await gateway.store.workers():
        raise NoWorker("No worker is ready to run the job. To queue it without waiting, send `Prefer: wait=0`.")
    return wait_s


async def submit(
    gateway: Gateway, submission: Submission, request: JobRequest, upload: Upload | None = None
) -> Accepted:
    """Create the job and wake a worker, or find the job of an earlier request with the same `Idempotency-Key`.

    The job is accepted as soon as its record is written: if the wake-up fails, a reaper repeats it. Raises
    InvalidOption, IdempotencyConflict, RateLimited, StorageFull and QueueUnavailable.
    """
    record = _new_record(submission, request, gateway.settings)
    if submission.idempotency is not None:
        job_id, exists = await gateway.idempotency.reserve(record, submission.idempotency)
        if exists:
            return Accepted(job_id, replayed=True)
        record = record.model_copy(update={"id": job_id})
    await gateway.rate_limits.count_job(submission.key, record.id)
    if upload is not None:
        await upload.video.commit(record.id)
        if isinstance(record.options, VideoOptions) and record.options.keep_video:
            await gateway.storage.keep_video(record.id)
    if not await _create(gateway, record, upload):
        return Accepted(record.id, replayed=True)
    with suppress(RedisError, OSError):
        await gateway.wakeups.wake(queue_of(record), record.id)
    _count_accepted(gateway, record)
    return Accepted(record.id, replayed=False, record=record)


async def job_response(gateway: Gateway, submission: Submission, accepted: Accepted, wait_s: int) -> Response:
    """Return 202 with the unfinished job or, if the job ends within `wait_s`, 200 with the job or its error."""
    headers = accepted.headers
    if wait_s:
        headers["Preference-Applied"] = f"wait={wait_s}"
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await _wait_for_end(gateway, accepted.id)
    job = await _current_state(gateway, submission, accepted)
    if job.error is not None:
        return failed_job_response(job.error, job_path(job.id), headers)
    status = 200 if job.status.ended else 202
    return Response(present_job(job).model_dump_json(), status, headers=headers, media_type="application/json")


def _new_record(submission: Submission, request: JobRequest, settings: Settings) -> Record:
    _check_webhook(request.options.webhook_url, settings)
    return Record(
        id=new_job_id(),
        kind=request.kind,
        options=_with_deadline(request.options, settings.max_deadline_s),
        source=request.source,
        parent=request.parent,
        metadata=request.metadata,
        owner=owner_of(submission.key),
        idempotency=submission.idempotency,
        created_at=datetime.now(UTC),
    )


def _check_webhook(url: str | None, settings: Settings) -> None:
    if url is None:
        return
    if settings.webhook_secret is None:
        raise InvalidOption("webhook_url: this service does not send webhooks, because WEBHOOK_SECRET is not set")
    check_url(url, settings.allowed_hosts)


def _with_deadline(options: Options, max_s: float) -> Options:
    if options.deadline_s is not None and options.deadline_s > max_s:
        raise InvalidOption(f"deadline_s: at most {max_s:g}")
    return options.model_copy(update={"deadline_s": options.deadline_s or max_s})


async def _create(gateway: Gateway, record: Record, upload: Upload | None) -> bool:
    """Write the record. Returns False if a concurrent request with the same `Idempotency-Key` has written it.

    Raises StorageFull if Redis has no memory, QueueUnavailable if it does not confirm the write.
    """
    try:
        return await gateway.store.create(record, gateway.idempotency.entry(record))
    except (RedisError, OSError) as error:
        log.warning("a job was not accepted: %s", error)
        if record.idempotency is None:
            with suppress(RedisError, OSError):
                async with asyncio.timeout(UNDO_TIMEOUT_S):
                    await _undo_create(gateway, record, upload, error)
        if isinstance(error, OutOfMemoryError):
            raise StorageFull(MEMORY_FULL) from error
        raise QueueUnavailable("The queue is unavailable at the moment; the job was not accepted.") from error


async def _undo_create(gateway: Gateway, record: Record, upload: Upload | None, error: Exception) -> None:
    """Delete the record, which may or may not have been written, and then the upload.

    If the record cannot be deleted, the upload stays: without it the job would fail, while an upload without a job is
    removed by the retention sweep. A record with an `Idempotency-Key` must not be deleted at all, because a repeated
    request may be about to use both.
    """
    if not refuses_writes(error):
        await gateway.store.delete(record.id)
    if upload is not None:
        await gateway.storage.delete_job_files(record.id)


def _count_accepted(gateway: Gateway, record: Record) -> None:
    gateway.metrics.accepted.labels(record.kind.value).inc()
    if record.source is not None and record.source.bytes is not None:
        gateway.metrics.upload_bytes.inc(record.source.bytes)


async def _wait_for_end(gateway: Gateway, job_id: str) -> None:
    async with aclosing(gateway.follower.follow(job_id, 0, gateway.settings.heartbeat_s)) as entries:
        async for _ in entries:
            pass


async def _current_state(gateway: Gateway, submission: Submission, accepted: Accepted) -> JobState:
    """Return the job's state. If Redis fails now, return the initial state: an error would make the client resend."""
    try:
        return await load_job(gateway.states, submission.key, accepted.id)
    except (RedisError, OSError):
        if accepted.record is None:
            raise
        return fold(accepted.record, [])
