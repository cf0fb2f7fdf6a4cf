"""RQ's side: what is listened to when, what a wake-up may do. The main thread is pytest's, as RQ wants it."""

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq import Queue
from rq.serializers import JSONSerializer

from service.contract.jobs import JobKind
from service.contract.store.wakeups import TASK, Wakeups
from workers.slot_worker import SlotWorker
from workers.tasks import VideoCapacity

MARK = "sharecap-test-mark"


class Jobs:
    """Stands in for `tasks.Runner` with one slot: notes what it is handed; a video takes room until it is let go."""

    def __init__(self) -> None:
        self.handed: list[str] = []
        self.free = 1

    @property
    def video_capacity(self) -> VideoCapacity:
        return (
            VideoCapacity.ANY if self.free > 0 else VideoCapacity.RESUMED_ONLY if self.free == 0 else VideoCapacity.NONE
        )

    def run_job(self, job_id: str) -> None:
        self.handed.append(job_id)
        self.free -= job_id.startswith("video")


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def wakeups(redis_url: str) -> Iterator[Wakeups]:
    wakeups = Wakeups(redis_url)
    yield wakeups
    wakeups.close()


def work(jobs: Jobs, redis: Redis, count: int) -> threading.Event:
    """Let a worker take `count` wake-ups; return whether it was asked to stop."""
    stop = threading.Event()
    SlotWorker(jobs, redis, stop).work(max_jobs=count, logging_level="CRITICAL")  # type: ignore[arg-type]
    return stop


def test_text_goes_before_videos_and_does_not_wait_for_a_slot(redis: Redis, wakeups: Wakeups) -> None:
    jobs = Jobs()
    for name in ("video-1", "video-2"):
        wakeups.push(JobKind.VIDEO, name)
    wakeups.push(JobKind.CLIP, "clip")
    wakeups.push(JobKind.RECAPTION, "recaption")
    work(jobs, redis, 3)
    assert jobs.handed == ["recaption", "clip", "video-1"]

    wakeups.push(JobKind.RECAPTION, "another")
    work(jobs, redis, 1)
    assert jobs.handed[3:] == ["another"], "the second video waits for a slot, the text does not"

    with ThreadPoolExecutor() as pool:
        pool.submit(lambda: (time.sleep(0.5), setattr(jobs, "free", 1)))
        start = time.monotonic()
        work(jobs, redis, 1)
    assert jobs.handed[4:] == ["video-2"]
    assert time.monotonic() - start >= 0.5


@pytest.mark.parametrize(
    "call",
    [
        {"func": "pathlib.Path.touch", "args": (MARK,)},
        {"func": "os.system", "args": (f"touch {MARK}",)},
        {"func": TASK, "args": ("a", "b")},
        {"func": TASK, "args": (7,)},
        {"func": TASK, "args": ("a",), "kwargs": {"job_id": "b"}},
    ],
)
def test_a_wake_up_can_do_one_thing_only(
    redis: Redis, wakeups: Wakeups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    jobs = Jobs()
    queue = Queue("recaption", connection=redis, serializer=JSONSerializer)
    queue.enqueue_call(**call)
    wakeups.push(JobKind.RECAPTION, "good")
    work(jobs, redis, 2)
    assert jobs.handed == ["good"], "the worker lives on"
    assert not list(tmp_path.iterdir())


def test_callbacks_are_never_run(redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    jobs = Jobs()
    queue = Queue("recaption", connection=redis, serializer=JSONSerializer)
    good = queue.enqueue_call(TASK, args=("good",))
    bad = queue.enqueue_call(TASK, args=(1,))
    for job in (good, bad):
        for callback in ("success_callback_name", "failure_callback_name", "stopped_callback_name"):
            redis.hset(job.key, callback, f"{__name__}.touch_mark")
    work(jobs, redis, 2)
    assert jobs.handed == ["good"]
    assert not list(tmp_path.iterdir())


def touch_mark(*_: object) -> None:
    Path(MARK).touch()


def test_a_signal_stops_the_worker_while_it_waits(redis: Redis) -> None:
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(1.0, signal.pthread_kill, (main, signal.SIGTERM))
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    timer.start()
    try:
        asked = work(Jobs(), redis, 1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert asked.is_set()
    assert redis.smembers("rq:workers") == set()


def test_a_wake_up_lies_in_its_queue_once_and_begun_jobs_go_first(redis: Redis, wakeups: Wakeups) -> None:
    for _ in range(3):
        wakeups.push(JobKind.RECAPTION, "new")
    wakeups.push(JobKind.RECAPTION, "begun", 1)
    wakeups.push(JobKind.RECAPTION, "begun", 2)
    assert redis.lrange("rq:queue:recaption", 0, -1) == [b"begun-2", b"begun-1", b"new-0"]


def test_begun_videos_go_before_new_ones_and_need_no_free_slot(redis: Redis, wakeups: Wakeups) -> None:
    jobs = Jobs()
    wakeups.push(JobKind.VIDEO, "video-new")
    for name in ("video-a", "video-b", "video-c"):
        wakeups.push(JobKind.VIDEO, name, 1)
    wakeups.push(JobKind.RECAPTION, "text")
    work(jobs, redis, 3)
    assert jobs.handed == ["text", "video-a", "video-b"]
    wakeups.push(JobKind.CLIP, "more-text")
    work(jobs, redis, 1)
    assert jobs.handed[3:] == ["more-text"], "there is an end to it"


def test_remote_commands_are_not_taken(redis: Redis, wakeups: Wakeups) -> None:
    jobs = Jobs()
    wakeups.push(JobKind.RECAPTION, "one")
    work(jobs, redis, 1)
    assert redis.pubsub_channels() == [] and jobs.handed == ["one"]
