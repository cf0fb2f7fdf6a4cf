"""Taking on a job and answering for it: what all routes that make or show one have in common."""

import asyncio
import re
from contextlib import aclosing, suppress
from datetime import UTC, datetime

from fastapi import Request, Response
from redis.exceptions import RedisError

from service.contract.errors import NotFound, NoWorker, QueueUnavailable
from service.contract.jobs import Job, JobKind, JobStatus, Options, Record, Source, links_of, new_job_id
from service.gateway import Gateway
from service.options import wait_asked_for
from service.problems import answer_of_failed

_ID = re.compile(r"cap_[0-9a-f]{32}")


async def waiting_time(gateway: Gateway, request: Request, default_s: int = 0) -> int:
    """Return for how long the answer may wait; raise NoWorker where it would be in vain."""
    wait_s = wait_asked_for(request, default_s)
    if wait_s and not await gateway.store.workers():
        raise NoWorker("No worker is ready, so there is nothing to wait for; without waiting the job is queued.")
    return wait_s


async def accept(
    gateway: Gateway,
    kind: JobKind,
    options: Options,
    metadata: dict[str, str],
    *,
    job_id: str | None = None,
    source: Source | None = None,
    parent: str | None = None,
) -> Record:
    """Write the job's record, then wake a worker. Raises QueueUnavailable, with nothing kept."""
    record = Record(
        id=job_id or new_job_id(),
        kind=kind,
        options=options,
        source=source,
        parent=parent,
        metadata=metadata,
        created_at=datetime.now(UTC),
    )
    try:
        await gateway.store.create(record)
        await gateway.wakeups.wake(kind, record.id)
    except (RedisError, OSError) as error:
        with suppress(RedisError, OSError):
            await gateway.store.delete(record.id)
        raise QueueUnavailable("The queue cannot be reached; the job was not taken on.") from error
    gateway.metrics.accepted.labels(kind.value).inc()
    gateway.metrics.upload_bytes.inc((source.bytes if source else None) or 0)
    return record


async def find(gateway: Gateway, job_id: str) -> Job:
    """Return the job as it stands; raise NotFound."""
    job = await gateway.store.job(job_id) if _ID.fullmatch(job_id) else None
    if job is None:
        raise _not_found()
    return job


async def status_of(gateway: Gateway, job_id: str) -> JobStatus:
    """Return the job's status without reading its events; raise NotFound."""
    found = await gateway.store.kind_and_status(job_id) if _ID.fullmatch(job_id) else None
    if found is None:
        raise _not_found()
    return found[1]


async def answer(gateway: Gateway, request: Request, record: Record, wait_s: int) -> Response:
    """Return 202 with the job, or, where it ends within `wait_s`, 200 with the ended job or the error it met."""
    headers = headers_of(record.id)
    if wait_s:
        headers["Preference-Applied"] = f"wait={wait_s}"
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await _end(gateway, record.id)
    job = await find(gateway, record.id)
    if job.error is not None:
        return answer_of_failed(job.error, job.links.self, headers)
    status = 200 if job.status.ended else 202
    return Response(job.model_dump_json(), status, headers=headers, media_type="application/json")


def headers_of(job_id: str) -> dict[str, str]:
    """Return the headers that tell of a new job."""
    return {"Location": links_of(job_id).self}


async def _end(gateway: Gateway, job_id: str) -> None:
    async with aclosing(gateway.follower.follow(job_id, 0, gateway.settings.heartbeat_s)) as entries:
        async for _ in entries:
            pass


def _not_found() -> NotFound:
    return NotFound("There is no such job.")
