"""RQ's side of a worker: which queues it listens to, and what a wake-up may do.

Runs on the main thread and does nothing but hand ids of jobs to `tasks.Runner`.
"""

import threading
from types import FrameType
from typing import Any

from redis import Redis
from rq import Queue
from rq.job import Job as RqJob
from rq.serializers import JSONSerializer
from rq.worker import SimpleWorker

from service.contract.jobs import JobKind
from service.contract.store.wakeups import RESUMED, TASK
from workers.tasks import Room, Runner

QUEUES = (JobKind.RECAPTION, JobKind.CLIP, RESUMED, JobKind.VIDEO)
"""Short text jobs never wait behind long videos, and begun videos not behind new ones."""
POLL_S = 1.0
POLL_FULL_S = 0.2


class Refused(Exception):
    """A wake-up that asks for anything but `run_job` with one job's id."""


def wake_up_class(runner: Runner) -> type[RqJob]:
    """Return the class of RQ jobs for this worker: whoever can write to Redis can wake it, and do nothing else."""

    class WakeUp(RqJob):
        def perform(self) -> None:
            if self.func_name != TASK or self.kwargs or len(self.args) != 1 or not isinstance(self.args[0], str):
                raise Refused(f"a wake-up may only call {TASK} with a job's id")
            runner.run_job(self.args[0])

        def execute_success_callback(self, *_: object) -> None: ...

        def execute_failure_callback(self, *_: object) -> None: ...

        def execute_stopped_callback(self, *_: object) -> None: ...

        def send_webhooks(self, *_: object, **__: object) -> None: ...

    return WakeUp


class SlotWorker(SimpleWorker):
    """RQ's SimpleWorker, listening to the queues of videos only while there is room for one.

    Its `work` ends on SIGTERM or SIGINT, which set `stop`, and when Redis goes away.
    """

    max_connection_wait_time = 1.0
    connection_timeout = 5
    """RQ's own would wait seven minutes for a lost answer."""

    def __init__(self, runner: Runner, redis: Redis, stop: threading.Event) -> None:
        queues = [Queue(name, connection=redis, serializer=JSONSerializer) for name in QUEUES]
        super().__init__(
            queues,
            connection=redis,
            job_class=wake_up_class(runner),
            serializer=JSONSerializer,
            log_job_description=False,
        )
        self._runner = runner
        self._stopping = stop

    def dequeue_job_and_maintain_ttl(self, timeout: int | None, max_idle_time: int | None = None) -> Any:
        """Wait for the next wake-up, as long as it takes."""
        found = None
        while found is None:
            room = self._runner.room_for_videos
            self._ordered_queues = self.queues[: {Room.FOR_ANY: 4, Room.FOR_RESUMED: 3, Room.NONE: 2}[room]]
            poll_s: Any = (
                POLL_S if room is Room.FOR_ANY else POLL_FULL_S
            )  # RQ hands it on to BLPOP, which takes fractions
            found = super().dequeue_job_and_maintain_ttl(poll_s, poll_s)
        return found

    def run_maintenance_tasks(self) -> None:
        """RQ's clean-up of abandoned jobs is not used: leases see to that, and it would run callbacks."""

    def subscribe(self) -> None:
        """RQ's remote commands are not taken: whoever can write to Redis could stop workers by them."""

    def unsubscribe(self) -> None: ...

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        self._stopping.set()
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call]
