"""Taking on a job and answering for it: what all routes that make or show one have in common."""

import asyncio
import logging
import re
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from fastapi import Request, Response
from redis.exceptions import RedisError

from service.access.keys import Key
from service.contract.errors import InvalidOption, NotFound, NoWorker, QueueUnavailable
from service.contract.events import fold
from service.contract.jobs import Job, JobKind, JobStatus, Options, Record, Source, links_of, new_job_id
from service.contract.outbound.ssrf import checked
from service.contract.store.connection import refuses_now
from service.dependencies import Gateway
from service.intake import idempotency
from service.intake.options import wait_asked_for
from service.intake.uploads import Upload
from service.problems import answer_of_failed
from service.settings import Settings

log = logging.getLogger(__name__)
UNDO_TIMEOUT_S = 1.0
_ID = re.compile(r"cap_[0-9a-f]{32}")


@dataclass(frozen=True)
class Submission:
    """What is known of a request for a job before its body is read."""

    key: Key | None
    idempotency: str | None
    """SHA-256 of its `Idempotency-Key`."""
    repeated: bool
    """That key came before: there is a job most likely."""

    @property
    def owner(self) -> str | None:
        return self.key.id if self.key else None


@dataclass(frozen=True)
class Accepted:
    """A job that the request made, or that an earlier one with its `Idempotency-Key` did."""

    id: str
    replayed: bool
    record: Record | None = None
    """What this request has just written."""

    @property
    def headers(self) -> dict[str, str]:
        """What tells of it in an answer."""
        replayed = {"Idempotency-Replayed": "true"} if self.replayed else {}
        return {"Location": links_of(self.id).self, **replayed}


async def begin(gateway: Gateway, request: Request, key: Key | None) -> Submission:
    """See whether the request may make a job, before its body is read. Raises RateLimited, InvalidOption."""
    idempotency_key = idempotency.key_of(request)
    owner = key.id if key else None
    repeated = idempotency_key is not None and await gateway.idempotency.is_known(owner, idempotency_key)
    if not repeated:
        await gateway.limits.job(key)
    return Submission(key, idempotency_key, repeated)


async def waiting_time(gateway: Gateway, request: Request, order: Submission, default_s: int = 0) -> int:
    """Return for how long the answer may wait; raise NoWorker where it would be in vain."""
    wait_s = wait_asked_for(request, default_s)
    if wait_s and not order.repeated and not await gateway.store.workers():
        raise NoWorker("No worker is ready, so there is nothing to wait for; without waiting the job is queued.")
    return wait_s


async def accept(
    gateway: Gateway,
    order: Submission,
    kind: JobKind,
    options: Options,
    metadata: dict[str, str],
    *,
    source: Source | None = None,
    parent: str | None = None,
    upload: Upload | None = None,
) -> Accepted:
    """Write the job's record, then wake a worker; where the request came before, find its job instead.

    With the record the job is accepted: where waking fails, a reaper does it. Raises InvalidOption,
    IdempotencyConflict, RateLimited, StorageFull, QueueUnavailable.
    """
    _check_webhook(options.webhook_url, gateway.settings)
    record = Record(
        id=new_job_id(),
        kind=kind,
        options=_until_deadline(options, gateway.settings.max_deadline_s),
        source=source,
        parent=parent,
        metadata=metadata,
        owner=order.owner,
        idempotency=order.idempotency,
        created_at=datetime.now(UTC),
    )
    if order.idempotency is not None:
        job_id, there = await gateway.idempotency.reserve(record)
        if there:
            return Accepted(job_id, replayed=True)
        record = record.model_copy(update={"id": job_id})
    await gateway.limits.job(order.key, record.id)
    if upload is not None:
        await upload.keep(record.id)
    if not await _create(gateway, record, upload):
        return Accepted(record.id, replayed=True)
    with suppress(RedisError, OSError):
        await gateway.wakeups.wake(kind, record.id)
    gateway.metrics.accepted.labels(kind.value).inc()
    gateway.metrics.upload_bytes.inc((source.bytes if source else None) or 0)
    return Accepted(record.id, replayed=False, record=record)


def _check_webhook(address: str | None, settings: Settings) -> None:
    if address is None:
        return
    if settings.webhook_secret is None:
        raise InvalidOption("webhook_url: this service has no WEBHOOK_SECRET to sign webhooks with")
    checked(address, settings.allowed_hosts)


def _until_deadline(options: Options, cap_s: float) -> Options:
    if options.deadline_s is not None and options.deadline_s > cap_s:
        raise InvalidOption(f"deadline_s: at most {cap_s:g}")
    return options.model_copy(update={"deadline_s": options.deadline_s or cap_s})


async def _create(gateway: Gateway, record: Record, upload: Upload | None) -> bool:
    """Write the record; return False where a request with the same `Idempotency-Key` has just done so.

    Where Redis does not answer, nobody knows whether the record is there. Then it is removed, and the video with it;
    where even that cannot be known, or where others may be about to use both, they stay: a video without a job goes
    in time, a job without its video would fail.
    """
    try:
        return await gateway.store.create(record, gateway.idempotency.entry(record))
    except (RedisError, OSError) as error:
        log.warning("a job was not taken on: %s", error)
        if record.idempotency is None:
            with suppress(RedisError, OSError):
                async with asyncio.timeout(UNDO_TIMEOUT_S):
                    if not refuses_now(error):
                        await gateway.store.delete(record.id)
                    if upload is not None:
                        upload.discard()
        raise QueueUnavailable("The queue takes nothing at present; the job was not taken on.") from error


async def find(gateway: Gateway, key: Key | None, job_id: str) -> Job:
    """Return the job as it stands; raise NotFound, also for another key's."""
    await status_of(gateway, key, job_id)
    job = await gateway.store.job(job_id)
    if job is None:
        raise _not_found()
    return job


async def status_of(gateway: Gateway, key: Key | None, job_id: str) -> JobStatus:
    """Return the job's status without reading its events; raise NotFound, also for another key's.

    A job made without a key is nobody's: once keys are asked for, no key shows it.
    """
    found = await gateway.store.owner_and_status(job_id) if _ID.fullmatch(job_id) else None
    if found is None or found[0] != (key.id if key else None):
        raise _not_found()
    return found[1]


async def answer(gateway: Gateway, order: Submission, accepted: Accepted, wait_s: int) -> Response:
    """Return 202 with the job, or, where it ends within `wait_s`, 200 with the ended job or the error it met."""
    headers = accepted.headers
    if wait_s:
        headers["Preference-Applied"] = f"wait={wait_s}"
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await _end(gateway, accepted.id)
    try:
        job = await find(gateway, order.key, accepted.id)
    except (RedisError, OSError):
        if accepted.record is None:
            raise
        job = fold(accepted.record, [])  # accepted it is: an error would have it sent again
    if job.error is not None:
        return answer_of_failed(job.error, job.links.self, headers)
    status = 200 if job.status.ended else 202
    return Response(job.model_dump_json(), status, headers=headers, media_type="application/json")


async def _end(gateway: Gateway, job_id: str) -> None:
    async with aclosing(gateway.follower.follow(job_id, 0, gateway.settings.heartbeat_s)) as entries:
        async for _ in entries:
            pass


def _not_found() -> NotFound:
    return NotFound("There is no such job.")
