"""Waking workers through RQ: the only use of it but for the worker's own.

A wake-up carries a job's id and nothing else; what is to be done lies in the record, what was done in the events. RQ's
name for it is the job's id and epoch, so that one that lies in the queue already is found and not doubled.
"""

import asyncio
from typing import Any

from redis import Redis
from rq import Queue
from rq.serializers import JSONSerializer

from service.contract.jobs import JobKind
from service.contract.store.connection import RetryFor

TASK = "workers.tasks.run_job"
RESUMED = "resumed"
"""The queue of videos that were begun: they need not wait for a slot that a new one has taken meanwhile."""
FAILURE_TTL_S = 3600
TRIED_FOR_S = 5.0


class Wakeups:
    """One RQ queue for each kind of job, named after it, and one for videos that were begun."""

    def __init__(self, redis_url: str) -> None:
        retry = RetryFor(TRIED_FOR_S)
        self._redis: Any = Redis.from_url(redis_url, socket_connect_timeout=2, socket_timeout=2, retry=retry)
        names = (*JobKind, RESUMED)
        self._queues = {name: Queue(name, connection=self._redis, serializer=JSONSerializer) for name in names}

    async def wake(self, kind: JobKind, job_id: str, epoch: int = 0) -> None:
        """Have some worker look at the job; raise redis.RedisError where the queue cannot be reached.

        To wake too often does no harm: a job is claimed only once. One that was begun goes before those that were not.
        """
        await asyncio.to_thread(self.push, kind, job_id, epoch)

    def push(self, kind: JobKind, job_id: str, epoch: int = 0) -> None:
        """Do what `wake` does, in this thread."""
        name = f"{job_id}-{epoch}"
        queue = self._queues[RESUMED if epoch and kind is JobKind.VIDEO else kind]
        if self._redis.lpos(queue.key, name) is not None:
            return
        queue.enqueue_call(
            TASK,
            args=(job_id,),
            timeout=-1,
            result_ttl=0,
            failure_ttl=FAILURE_TTL_S,
            job_id=name,
            at_front=epoch > 0 and queue.name != RESUMED,
        )

    def close(self) -> None:
        self._redis.close()
