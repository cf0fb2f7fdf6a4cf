"""Waking workers through RQ, as the gateway does it: for jobs that were given back, or whose wake-up was lost."""

import secrets
import time
from typing import Any

from redis import Redis
from rq import Queue
from rq.serializers import JSONSerializer

from service.contract.jobs import JobKind
from service.contract.store import LEASES, QUEUED, job_key

TASK = "workers.tasks.run_job"
FAILURE_TTL_S = 3600
CLOCK_ERROR_MS = 1000


class Wakeups:
    """One RQ queue for each kind of job, named after it. Blocking."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis  # redis-py's types cover its asynchronous answers too

    def wake(self, kind: JobKind, job_id: str) -> None:
        """Have some worker look at the job. To wake it too often does no harm: it can be claimed only once."""
        Queue(kind.value, connection=self._redis, serializer=JSONSerializer).enqueue_call(
            TASK,
            args=(job_id,),
            timeout=-1,
            result_ttl=0,
            failure_ttl=FAILURE_TTL_S,
            job_id=f"{job_id}-{secrets.token_hex(4)}",
        )

    def sweep(self) -> None:
        """Wake all jobs that nobody holds: queued ones, and those whose worker let its lease run out."""
        now_ms = int(time.time() * 1000) - CLOCK_ERROR_MS
        waiting = self._redis.zrange(QUEUED, 0, -1) + self._redis.zrangebyscore(LEASES, "-inf", now_ms)
        for job_id in (name.decode() for name in waiting):
            kind = self._redis.hget(job_key(job_id), "kind")
            if kind is not None:
                self.wake(JobKind(kind.decode()), job_id)
