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
from service.contract.store.turns import FETCH

TASK = "run_job"
"""The function name that RQ stores in every wake-up. Workers do not import it: see `workers/slot_worker.py`."""
TEXT_QUEUES = (JobKind.RECAPTION, JobKind.CLIP)
"""Listed before the video queues: short text jobs do not wait for long videos."""
RESUMED = "resumed"
"""Queue of videos that an earlier attempt has started. Workers take them even if new videos fill all slots."""
QUEUES = (*TEXT_QUEUES, FETCH, RESUMED, JobKind.VIDEO)
FAILURE_TTL_S = 3600
PATIENCE_S = 5.0
SOCKET_TIMEOUT_S = 2.0


class Wakeups:
    """One RQ queue for each kind of job, one for videos to download (`turns.FETCH`), and `RESUMED`."""

    def __init__(self, redis_url: str) -> None:
        timeouts = {"socket_connect_timeout": SOCKET_TIMEOUT_S, "socket_timeout": SOCKET_TIMEOUT_S}
        self._redis: Any = Redis.from_url(redis_url, retry=RetryFor(PATIENCE_S), **timeouts)
        self._queues = {name: Queue(name, connection=self._redis, serializer=JSONSerializer) for name in QUEUES}

    async def wake(self, queue: str, job_id: str, epoch: int = 0) -> None:
        """Wake a worker that listens to the job's queue (`turns.queue_of`). Raises redis.RedisError.

        A superfluous wake-up does no harm, because a job is leased only once. Jobs that were already started go before
        new ones.
        """
        await asyncio.to_thread(self.push, queue, job_id, epoch)

    def push(self, queue: str, job_id: str, epoch: int = 0) -> None:
        """Do what `wake` does, blocking the calling thread."""
        wakeup_id = f"{job_id}-{epoch}"
        is_text = queue in TEXT_QUEUES
        target = self._queues[queue if is_text or not epoch else RESUMED]
        if self._redis.lpos(target.key, wakeup_id) is not None:
            return
        target.enqueue_call(
            TASK,
            args=(job_id,),
            timeout=-1,
            result_ttl=0,
            failure_ttl=FAILURE_TTL_S,
            job_id=wakeup_id,
            at_front=epoch > 0 and is_text,
        )

    def close(self) -> None:
        self._redis.close()
