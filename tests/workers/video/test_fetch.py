"""Jobs with a URL, run by a real worker: the same result as an upload, and the documented error for bad responses."""

import asyncio
import gzip
import hashlib
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from service.contract.errors import UrlForbidden, UrlUnreachable
from service.contract.events import Event, Started, Video
from service.contract.jobs import JobKind, JobState, JobStatus, Record, Source, VideoOptions, new_job_id
from service.contract.outbound import ssrf as urls
from tests.fake_captioner import FakeCaptioner
from tests.hostile_server import Answer, HostileServer, endless, file, hostile_server, raw, redirect, status
from tests.workers.conftest import Bench
from workers.publisher import MemorySink
from workers.settings import Settings
from workers.video import fetch

MAX_BYTES = 1 << 20
QUICK: dict[str, Any] = {"max_upload_bytes": MAX_BYTES, "min_free_bytes": 0, "fetch_timeout_s": 3.0}


@pytest.fixture(autouse=True)
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "RETRY_PAUSES_S", (0.05, 0.05))
    monkeypatch.setattr(fetch, "RESPONSE_TIMEOUT_S", 0.5)
    monkeypatch.setattr(fetch, "RATE_WINDOW_S", 0.5)
    monkeypatch.setattr(fetch, "SCHEDULE_SLACK_S", 1.5)


@pytest.fixture
async def server() -> AsyncIterator[HostileServer]:
    async with hostile_server() as served:
        yield served


@pytest.fixture
async def canary(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[HostileServer]:
    """A server on this machine that the settings do not allow, although its port is allowed."""
    async with hostile_server() as served:
        monkeypatch.setattr(urls, "PORTS", {served.port})
        served.answers["/"] = file(b"secret")
        yield served
        assert served.connections == 0


async def queue(bench: Bench, url: str, **options: Any) -> str:
    record = Record(
        id=new_job_id(),
        kind=JobKind.VIDEO,
        options=VideoOptions(**options),
        source=Source(url=url),
        created_at=datetime.now(UTC),
    )
    assert await bench.store.create(record)
    return record.id


async def caption(bench: Bench, server: HostileServer, path: str = "/", **settings: Any) -> JobState:
    """Run a job with a URL of `server`, which the worker is allowed to contact."""
    runner = bench.runner(FakeCaptioner(), allowed_hosts=server.hosts, **{**QUICK, **settings})
    return await bench.run(runner, await queue(bench, server.url(path)))


def files(bench: Bench) -> list[str]:
    return [path.name for path in (bench.data_dir / "uploads").rglob("*")]


def outcome(job: JobState, events: list[Event]) -> tuple[str, set[str]]:
    """Return the parts of a job that do not vary between runs, and the types of its events."""
    times = {"created_at", "started_at", "finished_at", "timings_s"}
    source = {"url", "filename", "bytes", "sha256"}
    text = job.model_dump_json(exclude={**dict.fromkeys(times, True), "source": source})
    return text.replace(job.id, "id"), {event.type for event in events}


async def test_a_url_gives_the_same_result_as_an_upload(bench: Bench, server: HostileServer, clip: Path) -> None:
    server.answers = {
        "/": redirect("/2"),
        "/2": redirect(server.url("/3"), 308),
        "/3": redirect("clip.mp4"),
        "/clip.mp4": file(clip.read_bytes()),
    }
    fetched = await caption(bench, server)
    uploaded = await bench.run(bench.runner(FakeCaptioner()), await bench.video(clip))
    assert fetched.status is uploaded.status is JobStatus.COMPLETED
    assert outcome(fetched, await bench.events(fetched.id)) == outcome(uploaded, await bench.events(uploaded.id))
    data = clip.read_bytes()
    source = fetched.source
    assert source is not None and uploaded.source is not None
    assert (source.url, source.bytes, source.sha256) == (
        server.url("/"),
        len(data),
        hashlib.sha256(data).hexdigest(),
    )
    assert (source.duration_s, source.width, source.fps) == (3.0, 160, 10.0)
    assert files(bench) == []
    assert len(server.requests) == 4


async def test_transient_failures_are_retried(bench: Bench, server: HostileServer, clip: Path) -> None:
    failures = [status(503), raw("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")]

    async def answer(writer: asyncio.StreamWriter) -> None:
        await (failures.pop() if failures else file(clip.read_bytes()))(writer)

    server.answers["/"] = answer
    assert (await caption(bench, server)).status is JobStatus.COMPLETED
    assert len(server.requests) == 3


HEAD = "HTTP/1.1 200 OK\r\n"
BAD_RESPONSES: dict[str, tuple[Answer, str]] = {
    "missing": (status(404), "url_unreachable"),
    "always busy": (status(503), "url_unreachable"),
    "no content": (status(204), "url_unreachable"),
    "unrequested part": (status(206, "Content-Range: bytes 0-3/9", body=b"four"), "url_unreachable"),
    "redirect without location": (status(302), "url_unreachable"),
    "redirect loop": (redirect("/"), "url_unreachable"),
    "redirect to a file": (redirect("file:///etc/passwd"), "url_forbidden"),
    "redirect with a password": (redirect("http://a:b@example.com/"), "url_forbidden"),
    "redirect to another port": (redirect("http://example.com:22/"), "url_forbidden"),
    "empty": (file(b""), "not_a_video"),
    "HTML page": (file(b"<html>" + b" " * 2000), "not_a_video"),
    "another format": (file(b".RMF" + b"\0" * 2000), "unsupported_media"),
    "declared size too large": (raw(f"{HEAD}Content-Length: {MAX_BYTES + 1}\r\n\r\n"), "video_too_large"),
    "endless": (endless(f"{HEAD}\r\n", b"\0" * 65_536), "video_too_large"),
    "endless chunks": (
        endless(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"\0" * 65_536 + b"\r\n"),
        "video_too_large",
    ),
    "shorter than declared": (raw(f"{HEAD}Content-Length: 9\r\n\r\nhalf"), "url_unreachable"),
    "truncated chunk": (raw(f"{HEAD}Transfer-Encoding: chunked\r\n\r\nff\r\nhalf"), "url_unreachable"),
    "two lengths": (raw(f"{HEAD}Content-Length: 4\r\nContent-Length: 9\r\n\r\nhalf"), "url_unreachable"),
    "gzip": (status(200, "Content-Encoding: gzip", body=gzip.compress(b"\0" * (20 << 20))), "url_unreachable"),
    "gzip and brotli": (status(200, "Content-Encoding: gzip, br", body=b"\x1f\x8b"), "url_unreachable"),
    "gzip as transfer encoding": (
        raw(f"{HEAD}Transfer-Encoding: gzip\r\n\r\n", gzip.compress(b"\0" * (20 << 20))),
        "not_a_video",
    ),
    "long header": (raw(f"{HEAD}X: {'y' * 1_000_000}\r\n\r\n"), "url_unreachable"),
    "endless headers": (endless(HEAD, b"X: y\r\n" * 100), "url_unreachable"),
    "endless continue": (endless("", b"HTTP/1.1 100 Continue\r\n\r\n"), "url_unreachable"),
    "endless chunk extension": (
        endless(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n1;", b"y" * 65_536),
        "url_unreachable",
    ),
    "chunk extensions": (
        endless(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n", b"1;" + b"y" * 8000 + b"\r\ny\r\n"),
        "url_unreachable",
    ),
    "not HTTP": (raw("SSH-2.0-OpenSSH_9.9\r\n\r\n"), "url_unreachable"),
    "closes the connection": (raw(""), "url_unreachable"),
    "slow headers": (endless(f"{HEAD}X: ", b"y", 0.05), "url_unreachable"),
    "slow body": (endless(f"{HEAD}Content-Length: 100000\r\n\r\n", b"y", 0.05), "url_unreachable"),
    "slow chunks": (endless(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n", b"1\r\ny\r\n", 0.05), "url_unreachable"),
}


@pytest.mark.parametrize(("answer", "code"), BAD_RESPONSES.values(), ids=BAD_RESPONSES)
async def test_a_bad_response_gives_the_documented_error(
    bench: Bench, server: HostileServer, answer: Answer, code: str
) -> None:
    server.answers["/"] = answer
    started_at = time.monotonic()
    job = await caption(bench, server)
    assert (job.status, job.error and job.error.code) == (JobStatus.FAILED, code)
    assert time.monotonic() - started_at < QUICK["fetch_timeout_s"] + 10
    assert files(bench) == []
    assert len(server.requests) <= 2 * 3  # a connection that closes immediately is opened once more


async def test_the_timeout_covers_all_retries_together(bench: Bench, server: HostileServer) -> None:
    server.answers["/"] = endless(f"{HEAD}\r\n", b"\0" * 100, 0.01)
    job = await caption(bench, server, fetch_timeout_s=0.7, fetch_min_rate=0)
    assert job.error is not None and job.error.code == "url_unreachable"
    assert "0.7 s" in job.error.detail
    assert files(bench) == []


async def test_a_full_disk_is_reported_as_storage_full(bench: Bench, server: HostileServer, clip: Path) -> None:
    server.answers["/"] = file(clip.read_bytes())
    job = await caption(bench, server, min_free_bytes=1 << 62)
    assert job.error is not None and (job.error.code, job.error.retryable) == ("storage_full", True)
    assert files(bench) == []


INTERNAL_HOSTS = ["127.0.0.1", "localhost", "127.1", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]"]


@pytest.mark.parametrize("host", INTERNAL_HOSTS)
async def test_a_redirect_to_an_internal_host_is_refused(
    bench: Bench, server: HostileServer, canary: HostileServer, host: str
) -> None:
    server.answers["/"] = redirect(f"http://{host}:{canary.port}/")
    job = await caption(bench, server)
    assert job.error is not None and job.error.code == "url_forbidden"
    assert files(bench) == []


async def test_a_name_of_an_internal_host_is_refused(bench: Bench, canary: HostileServer) -> None:
    runner = bench.runner(FakeCaptioner(), **QUICK)
    job = await bench.run(runner, await queue(bench, f"http://ip6-localhost:{canary.port}/"))
    assert job.error is not None and job.error.code in ("url_forbidden", "url_unreachable")


REDIRECTS = [
    ("http://e.com/a/b", "c", "http://e.com/a/c"),
    ("http://e.com/", "https://f.com/x#y", "https://f.com/x"),
    ("https://e.com/", "//f.com/", "https://f.com/"),
    ("https://e.com/", "http://e.com/", UrlForbidden),
    ("https://e.com/", "ftp://e.com/", UrlForbidden),
    ("http://e.com/", "http://169.254.169.254/latest/meta-data", UrlForbidden),
    ("http://e.com/", "http://[", UrlUnreachable),
    ("http://e.com/", None, UrlUnreachable),
]


@pytest.mark.parametrize(("url", "location", "expected"), REDIRECTS)
def test_the_target_of_a_redirect(url: str, location: str | None, expected: str | type[Exception]) -> None:
    headers = {} if location is None else {"Location": location}
    if isinstance(expected, str):
        assert str(fetch.next_url(URL(url), headers, frozenset())) == expected
    else:
        with pytest.raises(expected):
            fetch.next_url(URL(url), headers, frozenset())


async def test_the_next_attempt_repeats_an_interrupted_download(
    bench: Bench, server: HostileServer, clip: Path
) -> None:
    server.answers["/"] = endless(f"{HEAD}Content-Length: 100000\r\n\r\n", b"y" * 5000, 0.05)
    runner = bench.runner(FakeCaptioner(), allowed_hosts=server.hosts, **QUICK)
    job_id = await queue(bench, server.url("/"))
    await asyncio.to_thread(runner.run_job, job_id)
    async with asyncio.timeout(10):
        while not files(bench):
            await asyncio.sleep(0.01)
    await runner.stop(0)
    assert files(bench) == []

    uploads = bench.data_dir / "uploads"
    (uploads / f"{job_id}.1.part").write_bytes(b"left by a worker that was killed")
    server.answers["/"] = file(clip.read_bytes())
    job = await bench.run(bench.runner(FakeCaptioner(), allowed_hosts=server.hosts, **QUICK), job_id)
    assert (job.status, job.attempts) == (JobStatus.COMPLETED, 2)
    assert files(bench) == []


async def test_a_resumed_job_rejects_a_different_file(bench: Bench, server: HostileServer, clip: Path) -> None:
    server.answers["/"] = file(clip.read_bytes() + b"more")
    job_id = await queue(bench, server.url("/"))
    lease = await bench.store.claim(job_id)
    assert lease is not None
    video = Video(duration_s=3, width=160, height=120, fps=10, interval_s=2, bytes=9, sha256="of another file")
    for seq, event in enumerate([Started(attempt=1), video], 2):
        await bench.store.append(lease, seq, event)
    await bench.store.release(lease)
    runner = bench.runner(FakeCaptioner(), allowed_hosts=server.hosts, **QUICK)
    job = await bench.run(runner, job_id)
    assert job.error is not None and (job.error.code, job.attempts) == ("url_unreachable", 2)
    assert "different file" in job.error.detail
    assert files(bench) == []


async def test_cancelling_stops_the_download(bench: Bench, server: HostileServer) -> None:
    server.answers["/"] = endless(f"{HEAD}Content-Length: 100000\r\n\r\n", b"y" * 5000, 0.05)
    runner = bench.runner(FakeCaptioner(), allowed_hosts=server.hosts, **{**QUICK, "fetch_timeout_s": 60})
    job_id = await queue(bench, server.url("/"))
    await asyncio.to_thread(runner.run_job, job_id)
    await bench.store.cancel(job_id)
    job = await bench.ended(job_id, 15)
    assert job.status is JobStatus.CANCELLED
    assert files(bench) == []


GIB = 1 << 30
MINUTE = 60
FOREVER = 10_000
Phase = tuple[float, int]
"""Bytes per second, and for how many seconds a download has this rate."""
DOWNLOADS: dict[str, tuple[int | None, list[Phase], int | None]] = {
    "4 GiB at 3 MB/s": (4 * GIB, [(3e6, FOREVER)], None),
    "1 GiB at 350 kB/s, which takes 51 min": (GIB, [(350e3, FOREVER)], None),
    "100 MB at 70 kB/s": (100_000_000, [(70e3, FOREVER)], None),
    "4 GiB at the rate that it needs": (4 * GIB, [(4 * GIB / 3600, FOREVER)], None),
    "a slow start": (4 * GIB, [(70e3, 50), (3e6, FOREVER)], None),
    "a dip of 5 minutes ahead of the schedule": (
        4 * GIB,
        [(3e6, 10 * MINUTE), (70e3, 5 * MINUTE), (3e6, FOREVER)],
        None,
    ),
    "short pauses": (4 * GIB, [(3e6, 60), (0, 15)] * 100, None),
    "an unknown size at 3 MB/s": (None, [(3e6, 4 * GIB // 3_000_000)], None),
    "an unknown size at 70 kB/s": (None, [(70e3, 50 * MINUTE)], None),
    "an unknown size with a dip": (None, [(3e6, 10 * MINUTE), (600e3, MINUTE), (3e6, 5 * MINUTE)], None),
    "4 GiB at 70 kB/s": (4 * GIB, [(70e3, FOREVER)], 65),
    "4 GiB at half the rate that it needs": (4 * GIB, [(600e3, FOREVER)], 125),
    "a fast start, then 70 kB/s": (4 * GIB, [(3e6, 10 * MINUTE), (70e3, FOREVER)], 30 * MINUTE),
    "no bytes for 25 s": (GIB, [(3e6, MINUTE), (0, 25), (3e6, FOREVER)], 81),
    "a small file below the minimum rate": (10_000_000, [(60e3, FOREVER)], 21),
    "an unknown size below the minimum rate": (None, [(60e3, FOREVER)], 21),
    "an unknown size, a fast start, then 70 kB/s": (None, [(3e6, 10 * MINUTE), (70e3, FOREVER)], 11 * MINUTE),
}


def aborted_after_s(rate: fetch.MinimumRate, size: int | None, phases: list[Phase]) -> int | None:
    """Return after how many seconds a download is aborted, or None if it completes. One chunk arrives each second."""
    received, now_s, deadline_s = 0.0, 0, rate.deadline_s(0, 0.0)
    for bytes_per_s, seconds in phases:
        for _ in range(seconds):
            now_s += 1
            if now_s > deadline_s:
                return now_s
            if bytes_per_s:
                received += bytes_per_s
                deadline_s = rate.deadline_s(int(received), now_s)
            if size is not None and received >= size:
                return None
    return None


@pytest.mark.parametrize(("size", "phases", "aborted_by_s"), DOWNLOADS.values(), ids=DOWNLOADS)
def test_which_downloads_are_too_slow(
    monkeypatch: pytest.MonkeyPatch, size: int | None, phases: list[Phase], aborted_by_s: int | None
) -> None:
    monkeypatch.setattr(fetch, "RATE_WINDOW_S", 20.0)
    monkeypatch.setattr(fetch, "SCHEDULE_SLACK_S", 60.0)
    settings = Settings()
    rate = fetch.MinimumRate(settings.fetch_min_rate, settings.fetch_timeout_s, size)
    aborted_s = aborted_after_s(rate, size, phases)
    if aborted_by_s is None:
        assert aborted_s is None
    else:
        assert aborted_s is not None and aborted_by_s // 2 < aborted_s <= aborted_by_s


def test_a_minimum_rate_of_zero_disables_both_rules() -> None:
    assert aborted_after_s(fetch.MinimumRate(0, 3600, 4 * GIB), 4 * GIB, [(0, 3600)]) is None


@pytest.mark.parametrize(("size", "code"), [(300_000, "not_a_video"), (20_000_000, "url_unreachable")])
async def test_a_large_file_that_cannot_arrive_in_time_is_refused_soon(
    bench: Bench, server: HostileServer, monkeypatch: pytest.MonkeyPatch, size: int, code: str
) -> None:
    monkeypatch.setattr(fetch, "RATE_WINDOW_S", 20.0)
    about_100_kb_per_s = endless(f"{HEAD}Content-Length: {size}\r\n\r\n", b"y" * 5000, 0.05)
    server.answers["/"] = about_100_kb_per_s
    started_at = time.monotonic()
    job = await caption(bench, server, max_upload_bytes=1 << 30, fetch_timeout_s=30.0, fetch_min_rate=30_000)
    assert job.error is not None and job.error.code == code
    assert time.monotonic() - started_at < 15, "at its rate, the large file would take 200 s"


def test_progress_is_reported_at_most_twenty_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "REPORT_EVERY_S", 0.0)
    sink = MemorySink()
    progress = fetch.Progress(sink, 1000)
    for received_bytes in range(1, 1001):
        progress.report(received_bytes)
    reports = [stored.event.data() for stored in sink.stored]
    assert len(reports) == fetch.REPORTS
    assert reports[0] == {"received_bytes": 1, "total_bytes": 1000} and reports[-1]["received_bytes"] > 900
    monkeypatch.setattr(fetch, "REPORT_EVERY_S", 3600.0)
    fetch.Progress(sink, None).report(1 << 40)
    assert len(sink.stored) == len(reports), "a short download reports nothing"
