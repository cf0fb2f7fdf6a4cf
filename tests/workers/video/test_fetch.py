"""Videos behind URLs, through a real worker: the same job as an upload's, and a documented end for all that is bad."""

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
from service.contract.jobs import Job, JobKind, JobStatus, Record, Source, VideoOptions, new_job_id
from service.contract.outbound import ssrf as urls
from tests.fake_captioner import FakeCaptioner
from tests.rogue import Answer, Rogue, endless, file, leads_to, rogue, says, status
from tests.workers.conftest import Bench
from workers.video import fetch

MAX_BYTES = 1 << 20
QUICK: dict[str, Any] = {"max_upload_bytes": MAX_BYTES, "min_free_bytes": 0, "fetch_timeout_s": 3.0}


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "PAUSES_S", (0.05, 0.05))
    monkeypatch.setattr(fetch, "HEAD_S", 0.5)
    monkeypatch.setattr(fetch, "WINDOW_S", 0.5)


@pytest.fixture
async def server() -> AsyncIterator[Rogue]:
    async with rogue() as served:
        yield served


@pytest.fixture
async def canary(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rogue]:
    """A server on this machine that no setting opens, though its port is as good as any."""
    async with rogue() as served:
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


async def caption(bench: Bench, server: Rogue, path: str = "/", **settings: Any) -> Job:
    """Have a worker, which may ask `server`, do a job with that URL."""
    runner = bench.runner(FakeCaptioner(), allowed_hosts=server.hosts, **{**QUICK, **settings})
    return await bench.run(runner, await queue(bench, server.url(path)))


def files(bench: Bench) -> list[str]:
    return [path.name for path in (bench.data_dir / "uploads").rglob("*")]


def told(job: Job, events: list[Event]) -> tuple[str, set[str]]:
    """What a job says that does not differ from run to run, and the kinds of its events."""
    times = {"created_at", "started_at", "finished_at", "timings_s"}
    source = {"url", "filename", "bytes", "sha256"}
    text = job.model_dump_json(exclude={**dict.fromkeys(times, True), "source": source})
    return text.replace(job.id, "id"), {event.type for event in events}


async def test_a_good_url_gives_the_same_job_as_the_upload(bench: Bench, server: Rogue, clip: Path) -> None:
    server.answers = {
        "/": leads_to("/2"),
        "/2": leads_to(server.url("/3"), 308),
        "/3": leads_to("clip.mp4"),
        "/clip.mp4": file(clip.read_bytes()),
    }
    fetched = await caption(bench, server)
    uploaded = await bench.run(bench.runner(FakeCaptioner()), await bench.video(clip))
    assert fetched.status is uploaded.status is JobStatus.COMPLETED
    assert told(fetched, await bench.events(fetched.id)) == told(uploaded, await bench.events(uploaded.id))
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


async def test_what_passes_is_tried_again(bench: Bench, server: Rogue, clip: Path) -> None:
    bad = [status(503), says("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")]

    async def answer(writer: asyncio.StreamWriter) -> None:
        await (bad.pop() if bad else file(clip.read_bytes()))(writer)

    server.answers["/"] = answer
    assert (await caption(bench, server)).status is JobStatus.COMPLETED
    assert len(server.requests) == 3


HEAD = "HTTP/1.1 200 OK\r\n"
BAD: dict[str, tuple[Answer, str]] = {
    "missing": (status(404), "url_unreachable"),
    "always busy": (status(503), "url_unreachable"),
    "no content": (status(204), "url_unreachable"),
    "a part unasked": (status(206, "Content-Range: bytes 0-3/9", body=b"four"), "url_unreachable"),
    "redirect to nowhere": (status(302), "url_unreachable"),
    "redirect loop": (leads_to("/"), "url_unreachable"),
    "redirect to a file": (leads_to("file:///etc/passwd"), "url_forbidden"),
    "redirect with a password": (leads_to("http://a:b@example.com/"), "url_forbidden"),
    "redirect to another port": (leads_to("http://example.com:22/"), "url_forbidden"),
    "empty": (file(b""), "not_a_video"),
    "a page": (file(b"<html>" + b" " * 2000), "not_a_video"),
    "another format": (file(b"GIF89a" + b"\0" * 2000), "unsupported_media"),
    "says it is too large": (says(f"{HEAD}Content-Length: {MAX_BYTES + 1}\r\n\r\n"), "video_too_large"),
    "endless": (endless(f"{HEAD}\r\n", b"\0" * 65_536), "video_too_large"),
    "endless chunks": (
        endless(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"\0" * 65_536 + b"\r\n"),
        "video_too_large",
    ),
    "shorter than it says": (says(f"{HEAD}Content-Length: 9\r\n\r\nhalf"), "url_unreachable"),
    "ends in a chunk": (says(f"{HEAD}Transfer-Encoding: chunked\r\n\r\nff\r\nhalf"), "url_unreachable"),
    "two lengths": (says(f"{HEAD}Content-Length: 4\r\nContent-Length: 9\r\n\r\nhalf"), "url_unreachable"),
    "packed": (status(200, "Content-Encoding: gzip", body=gzip.compress(b"\0" * (20 << 20))), "url_unreachable"),
    "packed twice": (status(200, "Content-Encoding: gzip, br", body=b"\x1f\x8b"), "url_unreachable"),
    "packed in transfer": (
        says(f"{HEAD}Transfer-Encoding: gzip\r\n\r\n", gzip.compress(b"\0" * (20 << 20))),
        "not_a_video",
    ),
    "long header": (says(f"{HEAD}X: {'y' * 1_000_000}\r\n\r\n"), "url_unreachable"),
    "endless headers": (endless(HEAD, b"X: y\r\n" * 100), "url_unreachable"),
    "endless continue": (endless("", b"HTTP/1.1 100 Continue\r\n\r\n"), "url_unreachable"),
    "no HTTP": (says("SSH-2.0-OpenSSH_9.9\r\n\r\n"), "url_unreachable"),
    "hangs up": (says(""), "url_unreachable"),
    "slow head": (endless(f"{HEAD}X: ", b"y", 0.05), "url_unreachable"),
    "slow body": (endless(f"{HEAD}Content-Length: 100000\r\n\r\n", b"y", 0.05), "url_unreachable"),
    "slow chunks": (endless(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n", b"1\r\ny\r\n", 0.05), "url_unreachable"),
}


@pytest.mark.parametrize(("answer", "code"), BAD.values(), ids=BAD)
async def test_a_bad_answer_ends_as_documented(bench: Bench, server: Rogue, answer: Answer, code: str) -> None:
    server.answers["/"] = answer
    begun = time.monotonic()
    job = await caption(bench, server)
    assert (job.status, job.error and job.error.code) == (JobStatus.FAILED, code)
    assert time.monotonic() - begun < QUICK["fetch_timeout_s"] + 10
    assert files(bench) == []
    assert len(server.requests) <= 2 * 3  # a connection that ends at once is made once more


async def test_the_deadline_is_for_all_tries_together(bench: Bench, server: Rogue) -> None:
    server.answers["/"] = endless(f"{HEAD}\r\n", b"\0" * 100, 0.01)
    job = await caption(bench, server, fetch_timeout_s=0.7, fetch_min_rate=0)
    assert job.error is not None and job.error.code == "url_unreachable"
    assert "0.7 s" in job.error.detail
    assert files(bench) == []


async def test_a_full_disk_is_told_as_that(bench: Bench, server: Rogue, clip: Path) -> None:
    server.answers["/"] = file(clip.read_bytes())
    job = await caption(bench, server, min_free_bytes=1 << 62)
    assert job.error is not None and (job.error.code, job.error.retryable) == ("storage_full", True)
    assert files(bench) == []


INSIDE = ["127.0.0.1", "localhost", "127.1", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]"]


@pytest.mark.parametrize("host", INSIDE)
async def test_no_redirect_leads_inside(bench: Bench, server: Rogue, canary: Rogue, host: str) -> None:
    server.answers["/"] = leads_to(f"http://{host}:{canary.port}/")
    job = await caption(bench, server)
    assert job.error is not None and job.error.code == "url_forbidden"
    assert files(bench) == []


async def test_no_name_leads_inside(bench: Bench, canary: Rogue) -> None:
    runner = bench.runner(FakeCaptioner(), **QUICK)
    job = await bench.run(runner, await queue(bench, f"http://ip6-localhost:{canary.port}/"))
    assert job.error is not None and job.error.code in ("url_forbidden", "url_unreachable")


NEXT = [
    ("http://e.com/a/b", "c", "http://e.com/a/c"),
    ("http://e.com/", "https://f.com/x#y", "https://f.com/x"),
    ("https://e.com/", "//f.com/", "https://f.com/"),
    ("https://e.com/", "http://e.com/", UrlForbidden),
    ("https://e.com/", "ftp://e.com/", UrlForbidden),
    ("http://e.com/", "http://169.254.169.254/latest/meta-data", UrlForbidden),
    ("http://e.com/", "http://[", UrlUnreachable),
    ("http://e.com/", None, UrlUnreachable),
]


@pytest.mark.parametrize(("url", "location", "expected"), NEXT)
def test_where_a_redirect_leads(url: str, location: str | None, expected: str | type[Exception]) -> None:
    headers = {} if location is None else {"Location": location}
    if isinstance(expected, str):
        assert str(fetch.next_url(URL(url), headers, frozenset())) == expected
    else:
        with pytest.raises(expected):
            fetch.next_url(URL(url), headers, frozenset())


async def test_another_attempt_fetches_what_the_one_before_did_not(bench: Bench, server: Rogue, clip: Path) -> None:
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


async def test_a_job_that_has_begun_takes_no_other_file(bench: Bench, server: Rogue, clip: Path) -> None:
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
    assert "another file" in job.error.detail
    assert files(bench) == []


async def test_cancelling_ends_the_fetching(bench: Bench, server: Rogue) -> None:
    server.answers["/"] = endless(f"{HEAD}Content-Length: 100000\r\n\r\n", b"y" * 5000, 0.05)
    runner = bench.runner(FakeCaptioner(), allowed_hosts=server.hosts, **{**QUICK, "fetch_timeout_s": 60})
    job_id = await queue(bench, server.url("/"))
    await asyncio.to_thread(runner.run_job, job_id)
    await bench.store.cancel(job_id)
    job = await bench.ended(job_id, 15)
    assert job.status is JobStatus.CANCELLED
    assert files(bench) == []
