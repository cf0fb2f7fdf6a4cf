"""Wake-ups: RQ messages that tell a worker to look at a job.

A wake-up carries only the job's id. What to do is in the job's record; what was done is in its events. RQ's id of a
wake-up consists of the job's id and epoch, so that a wake-up that is already queued is not queued twice.
"""

import asyncio
from typing import Any

from redis import Redis
from rq import Queue
from rq.serializers import JSONSerializer

from service.contract.jobs import JobKind
from service.contract.store.retry import RetryFor

TASK = "run_job"
"""The function name that RQ stores in every wake-up. Workers do not import it: see `workers/slot_worker.py`."""
RESUMED = "resumed"
"""The queue of videos that an earlier attempt started: they do not wait for a slot that a new video has taken."""
FAILURE_TTL_S = 3600
PATIENCE_S = 5.0
SOCKET_TIMEOUT_S = 2.0


class Wakeups:
    """One RQ queue for each kind of job, named after the kind, and one for videos that were already started."""

    def __init__(self, redis_url: str) -> None:
        timeouts = {"socket_connect_timeout": SOCKET_TIMEOUT_S, "socket_timeout": SOCKET_TIMEOUT_S}
        self._redis: Any = Redis.from_url(redis_url, retry=RetryFor(PATIENCE_S), **timeouts)
        names = (*JobKind, RESUMED)
        self._queues = {name: Queue(name, connection=self._redis, serializer=JSONSerializer) for name in names}

    async def wake(self, kind: JobKind, job_id: str, epoch: int = 0) -> None:
        """Wake a worker for the job. Raises redis.RedisError if the queue cannot be reached.

        A superfluous wake-up does no harm, because a job is leased only once. Jobs that were already started go before
        new ones.
        """
        await asyncio.to_thread(self.push, kind, job_id, epoch)

    def push(self, kind: JobKind, job_id: str, epoch: int = 0) -> None:
        """Do what `wake` does, blocking the calling thread."""
        wakeup_id = f"{job_id}-{epoch}"
        queue = self._queues[RESUMED if epoch and kind is JobKind.VIDEO else kind]
        if self._redis.lpos(queue.key, wakeup_id) is not None:
            return
        queue.enqueue_call(
            TASK,
            args=(job_id,),
            timeout=-1,
            result_ttl=0,
            failure_ttl=FAILURE_TTL_S,
            job_id=wakeup_id,
            at_front=epoch > 0 and queue.name != RESUMED,
        )

    def close(self) -> None:
        self._redis.close()
