"""The RQ worker: which queues it listens to and what a wake-up can do. It runs on the main thread, as RQ requires."""

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
from service.contract.store.wakeups import QUEUES, RESUMED, TASK, TEXT_QUEUES, Wakeups
from workers.slot_worker import SlotWorker

MARK = "sharecap-test-mark"


class RecordingRunner:
    """Replaces `tasks.JobRunner`: records job ids. It has one video slot, which a video never gives back by itself."""

    def __init__(self) -> None:
        self.job_ids: list[str] = []
        self.free_slots = 1

    @property
    def open_queues(self) -> tuple[str, ...]:
        if self.free_slots > 0:
            return QUEUES
        return (*TEXT_QUEUES, RESUMED) if self.free_slots == 0 else TEXT_QUEUES

    def run_job(self, job_id: str) -> None:
        self.job_ids.append(job_id)
        self.free_slots -= job_id.startswith("video")


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def wakeups(redis_url: str) -> Iterator[Wakeups]:
    wakeups = Wakeups(redis_url)
    yield wakeups
    wakeups.close()


def work(runner: RecordingRunner, redis: Redis, count: int) -> threading.Event:
    """Run a worker for `count` wake-ups. The returned event is set if a signal stopped it."""
    stop = threading.Event()
    SlotWorker(runner, redis, stop).work(max_jobs=count, logging_level="CRITICAL")  # type: ignore[arg-type]
    return stop


def test_text_jobs_go_before_videos_and_need_no_slot(redis: Redis, wakeups: Wakeups) -> None:
    runner = RecordingRunner()
    for name in ("video-1", "video-2"):
        wakeups.push(JobKind.VIDEO, name)
    wakeups.push(JobKind.CLIP, "clip")
    wakeups.push(JobKind.RECAPTION, "recaption")
    work(runner, redis, 3)
    assert runner.job_ids == ["recaption", "clip", "video-1"]

    wakeups.push(JobKind.RECAPTION, "another")
    work(runner, redis, 1)
    assert runner.job_ids[3:] == ["another"], "the second video waits for a slot, the text job does not"

    with ThreadPoolExecutor() as pool:
        pool.submit(lambda: (time.sleep(0.5), setattr(runner, "free_slots", 1)))
        start = time.monotonic()
        work(runner, redis, 1)
    assert runner.job_ids[4:] == ["video-2"]
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
def test_a_wake_up_can_only_run_a_job(
    redis: Redis, wakeups: Wakeups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    runner = RecordingRunner()
    queue = Queue("recaption", connection=redis, serializer=JSONSerializer)
    queue.enqueue_call(**call)
    wakeups.push(JobKind.RECAPTION, "good")
    work(runner, redis, 2)
    assert runner.job_ids == ["good"], "the worker keeps running"
    assert not list(tmp_path.iterdir())


def test_callbacks_are_never_run(redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runner = RecordingRunner()
    queue = Queue("recaption", connection=redis, serializer=JSONSerializer)
    good = queue.enqueue_call(TASK, args=("good",))
    bad = queue.enqueue_call(TASK, args=(1,))
    for job in (good, bad):
        for callback in ("success_callback_name", "failure_callback_name", "stopped_callback_name"):
            redis.hset(job.key, callback, f"{__name__}.touch_mark")
    work(runner, redis, 2)
    assert runner.job_ids == ["good"]
    assert not list(tmp_path.iterdir())


def touch_mark(*_: object) -> None:
    Path(MARK).touch()


def test_a_signal_stops_a_waiting_worker(redis: Redis) -> None:
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(1.0, signal.pthread_kill, (main, signal.SIGTERM))
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    timer.start()
    try:
        stopped = work(RecordingRunner(), redis, 1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert stopped.is_set()
    assert redis.smembers("rq:workers") == set()


def test_a_wake_up_is_queued_once_and_resumed_jobs_go_first(redis: Redis, wakeups: Wakeups) -> None:
    for _ in range(3):
        wakeups.push(JobKind.RECAPTION, "new")
    wakeups.push(JobKind.RECAPTION, "resumed", 1)
    wakeups.push(JobKind.RECAPTION, "resumed", 2)
    assert redis.lrange("rq:queue:recaption", 0, -1) == [b"resumed-2", b"resumed-1", b"new-0"]


def test_resumed_videos_go_before_new_ones_and_need_no_free_slot(redis: Redis, wakeups: Wakeups) -> None:
    runner = RecordingRunner()
    wakeups.push(JobKind.VIDEO, "video-new")
    for name in ("video-a", "video-b", "video-c"):
        wakeups.push(JobKind.VIDEO, name, 1)
    wakeups.push(JobKind.RECAPTION, "text")
    work(runner, redis, 3)
    assert runner.job_ids == ["text", "video-a", "video-b"]
    wakeups.push(JobKind.CLIP, "more-text")
    work(runner, redis, 1)
    assert runner.job_ids[3:] == ["more-text"], "at twice the slots, no more videos are taken"


def test_remote_commands_are_disabled(redis: Redis, wakeups: Wakeups) -> None:
    runner = RecordingRunner()
    wakeups.push(JobKind.RECAPTION, "one")
    work(runner, redis, 1)
    assert redis.pubsub_channels() == [] and runner.job_ids == ["one"]
