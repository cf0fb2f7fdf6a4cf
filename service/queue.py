"""Waking the workers through RQ: the service's only use of it.

A wake-up carries a job's id and nothing else; what is to be done lies in the record, what was done in the events.
"""

import secrets

from anyio import to_thread
from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry
from rq import Queue
from rq.serializers import JSONSerializer

from service.contract.jobs import JobKind

TASK = "workers.tasks.run_job"
FAILURE_TTL_S = 3600


class Wakeups:
    """One RQ queue for each kind of job, named after it."""

    def __init__(self, redis_url: str) -> None:
        retry = Retry(ExponentialBackoff(cap=0.2, base=0.05), 1)
        self._redis = Redis.from_url(redis_url, socket_connect_timeout=2, socket_timeout=5, retry=retry)
        self._queues = {kind: Queue(kind.value, connection=self._redis, serializer=JSONSerializer) for kind in JobKind}

    async def wake(self, kind: JobKind, job_id: str) -> None:
        """Have some worker look at the job; raise redis.RedisError where the queue cannot be reached."""
        await to_thread.run_sync(self._enqueue, kind, job_id)

    def _enqueue(self, kind: JobKind, job_id: str) -> None:
        self._queues[kind].enqueue_call(
            TASK,
            args=(job_id,),
            timeout=-1,
            result_ttl=0,
            failure_ttl=FAILURE_TTL_S,
            job_id=f"{job_id}-{secrets.token_hex(4)}",
        )

    def close(self) -> None:
        self._redis.close()
