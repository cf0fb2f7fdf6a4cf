"""The RQ worker: which queues it listens to, and what a wake-up can do.

It runs on the main thread and only hands job ids to `tasks.JobRunner`.

RQ keeps records of workers and executions that nothing here reads. Each write of them would be synced to the disk and
delay the events of running jobs, so this worker leaves most of them out.
"""

import logging
import threading
import time
from types import FrameType
from typing import Any

from redis import Redis
from rq import Queue
from rq.job import Job as RqJob
from rq.serializers import JSONSerializer
from rq.worker import SimpleWorker, WorkerStatus

from service.contract.store.wakeups import QUEUES, TASK
from workers.tasks import JobRunner

POLL_S = 1.0
POLL_WHILE_FULL_S = 0.2
HEARTBEAT_EVERY_S = 60.0
"""RQ forgets a worker that has sent no heartbeat for eight minutes."""

log = logging.getLogger("sharecap.worker")


class WakeUpRefused(Exception):
    """A wake-up asks for something other than running one job."""


class WakeUp(RqJob):
    """An RQ job. A client with write access to Redis can wake the worker with it, nothing else."""

    @property
    def target(self) -> str | None:
        """The job that is woken, None if this is not a wake-up."""
        if self.func_name != TASK or self.kwargs or len(self.args) != 1 or not isinstance(self.args[0], str):
            return None
        return self.args[0]

    def perform(self) -> None:
        raise WakeUpRefused(f"the only valid wake-up is {TASK} with one job id")

    def execute_success_callback(self, *_: object) -> None: ...

    def execute_failure_callback(self, *_: object) -> None: ...

    def execute_stopped_callback(self, *_: object) -> None: ...

    def send_webhooks(self, *_: object, **__: object) -> None: ...


class SlotWorker(SimpleWorker):
    """RQ's SimpleWorker, which listens only to the queues of jobs that the runner has room for.

    `work` returns when Redis becomes unreachable, or on SIGTERM or SIGINT, which also set `stop`.
    """

    max_connection_wait_time = 1.0
    connection_timeout = 5
    """RQ's default would wait seven minutes for a lost reply."""

    def __init__(self, runner: JobRunner, redis: Redis, stop: threading.Event) -> None:
        self._queues = {name: Queue(name, connection=redis, serializer=JSONSerializer) for name in QUEUES}
        super().__init__(
            list(self._queues.values()),
            connection=redis,
            job_class=WakeUp,
            serializer=JSONSerializer,
            log_job_description=False,
        )
        self._runner = runner
        self._stopping = stop
        self._heartbeat_at = -HEARTBEAT_EVERY_S

    def dequeue_job_and_maintain_ttl(self, timeout: int | None, max_idle_time: int | None = None) -> Any:
        """Return the next wake-up, however long it takes to arrive."""
        wake_up = None
        while wake_up is None:
            names = self._runner.open_queues
            self._ordered_queues = [self._queues[name] for name in names]
            # Typed as int by RQ, which passes it on to BLPOP, which accepts fractions.
            poll_s: Any = POLL_S if len(names) == len(QUEUES) else POLL_WHILE_FULL_S
            wake_up = super().dequeue_job_and_maintain_ttl(poll_s, poll_s)
        return wake_up

    def execute_job(self, job: RqJob, queue: Queue) -> None:
        """Run the job that is woken. RQ handles everything else in its queues, and records it as failed."""
        assert isinstance(job, WakeUp)
        if job.target is None:
            super().execute_job(job, queue)
            return
        self.set_state(WorkerStatus.BUSY)  # a signal then waits for the end of this wake-up
        try:
            self._runner.run_job(job.target)
        except Exception:  # the reaper sends another wake-up
            log.exception("%s: the wake-up failed", job.target)
        self.connection.delete(job.key)
        self.set_state(WorkerStatus.IDLE)

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """Send a heartbeat if the latest one was sent `HEARTBEAT_EVERY_S` ago."""
        if time.monotonic() - self._heartbeat_at >= HEARTBEAT_EVERY_S:
            self._heartbeat_at = time.monotonic()
            super().heartbeat(timeout, pipeline)

    def set_state(self, state: str, pipeline: Any = None) -> None:
        """Keep the state in this process only."""
        self._state = state

    def run_maintenance_tasks(self) -> None:
        """Disable RQ's clean-up of abandoned jobs: it would run callbacks, and leases do that work."""

    def subscribe(self) -> None:
        """Disable RQ's remote commands: a client with write access to Redis could stop workers with them."""

    def unsubscribe(self) -> None: ...

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        self._stopping.set()
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call]
