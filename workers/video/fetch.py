"""Downloads the video of a job that was submitted as a URL. Runs before the first stage of the pipeline.

The storage receives the file and makes it the job's upload only when it is complete; it also discards what an
interrupted attempt received. As with uploads, the probe checks afterwards whether the file is a video.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import ClientResponse
from yarl import URL

from service.contract.errors import UrlForbidden, UrlUnreachable
from service.contract.events import Fetching
from service.contract.outbound import http as net
from service.contract.outbound.http import TransientFetchError
from service.contract.outbound.ssrf import HostAndPort, check_url
from service.contract.storage.interface import IncomingVideo, too_large
from workers.attempt import Attempt, Fetched
from workers.publisher import EventSink

MAX_REDIRECTS = 3
REDIRECT_STATUSES = (301, 302, 303, 307, 308)
TRANSIENT_STATUSES = (408, 425, 429, 500, 502, 503, 504)
"""Statuses for which the download is retried."""
RETRY_PAUSES_S = (1.0, 5.0, 20.0)
"""Pauses before the retries."""
RESPONSE_TIMEOUT_S = 30.0
"""Time limit from a request to the headers of its response."""
RATE_WINDOW_S = 20.0
"""Period over which the minimum rate is measured."""
REPORTS = 20
REPORT_EVERY_S = 1.0
REPORT_EVERY_BYTES = 64 << 20
"""Of a file whose size is not known."""
SCHEDULE_SLACK_S = 60.0
"""How far a file of declared size may fall behind its schedule."""


async def fetch(attempt: Attempt) -> None:
    """Download the job's video into the storage, unless it was uploaded, already exists, or all keyframes are stored.

    Raises UrlForbidden, UrlUnreachable, VideoTooLarge, StorageFull, and Fenced or CancelRequested.
    """
    source = attempt.job.source
    if source is None or source.url is None or attempt.keyframes_complete:
        return
    if source.sha256 is not None and await attempt.context.storage.has_upload(attempt.record.id):
        return
    allowed_s = attempt.context.settings.fetch_timeout_s
    try:
        async with asyncio.timeout(allowed_s):
            fetched = await _download_with_retries(attempt, source.url, source.sha256)
    except TimeoutError:
        raise UrlUnreachable(f"The file took longer than {allowed_s:g} s to download.") from None
    attempt.fetched = fetched


async def _download_with_retries(attempt: Attempt, url: str, sha256: str | None) -> Fetched:
    for pause_s in RETRY_PAUSES_S:
        try:
            return await _download(attempt, url, sha256)
        except TransientFetchError:
            await asyncio.sleep(pause_s)
    return await _download(attempt, url, sha256)


async def _download(attempt: Attempt, url: str, sha256: str | None) -> Fetched:
    """Download the file and store it as the job's upload. With `sha256`, any other file raises UrlUnreachable."""
    settings, storage, job_id = attempt.context.settings, attempt.context.storage, attempt.record.id
    async with (
        _final_response(check_url(url, settings.allowed_hosts), attempt) as response,
        storage.receive(settings.max_upload_bytes, job_id) as video,
    ):
        storage.check_free_space(response.content_length or 0)
        rate = MinimumRate(settings.fetch_min_rate, settings.fetch_timeout_s, response.content_length)
        await _receive(response, video, rate, Progress(attempt.events, response.content_length))
        if sha256 not in (None, video.sha256):
            raise UrlUnreachable("The URL returns a different file than when the job started.")
        await attempt.events.check_lease()  # without the lease, it must not replace another attempt's file
        await video.commit(job_id)
        return Fetched(video.size, video.sha256)


@asynccontextmanager
async def _final_response(url: URL, attempt: Attempt) -> AsyncIterator[ClientResponse]:
    """Send the request, follow redirects, and yield the response that contains the file."""
    hosts = attempt.context.settings.allowed_hosts
    for _ in range(MAX_REDIRECTS + 1):
        async with _response(url, attempt) as response:
            if response.status not in REDIRECT_STATUSES:
                _check_headers(response, attempt.context.settings.max_upload_bytes)
                yield response
                return
            url = next_url(url, response.headers, hosts)
    raise UrlUnreachable(f"The URL redirects more than {MAX_REDIRECTS} times.")


@asynccontextmanager
async def _response(url: URL, attempt: Attempt) -> AsyncIterator[ClientResponse]:
    """Send one request and yield its response. Raises TransientFetchError if the response does not start in time."""
    try:
        async with asyncio.timeout(RESPONSE_TIMEOUT_S) as limit:
            async with net.request("GET", url, attempt.context.settings.allowed_hosts) as response:
                limit.reschedule(None)  # reading the body has limits of its own
                yield response
    except TimeoutError:
        if not limit.expired():
            raise
        raise TransientFetchError(f"The server did not answer within {RESPONSE_TIMEOUT_S:g} s.") from None


def next_url(url: URL, headers: Mapping[str, str], hosts: Set[HostAndPort]) -> URL:
    """Return the target of a redirect. Raises UrlForbidden, and UrlUnreachable if it has no valid target."""
    try:
        target = url.join(URL(headers["Location"]))
    except (KeyError, ValueError):
        raise UrlUnreachable("The URL redirects to an invalid location.") from None
    if url.scheme == "https" and target.scheme != "https":
        raise UrlForbidden("The URL redirects from https:// to another scheme.")
    return check_url(str(target), hosts)


def _check_headers(response: ClientResponse, max_bytes: int) -> None:
    if response.status in TRANSIENT_STATUSES:
        raise TransientFetchError(f"The server answered with status {response.status}.")
    if response.status != 200:
        raise UrlUnreachable(f"The server answered with status {response.status}.")
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UrlUnreachable("The server sent a compressed response that was not requested.")
    if (response.content_length or 0) > max_bytes:
        raise too_large(max_bytes)


@dataclass
class MinimumRate:
    """Decides when a download is too slow. Times are in seconds since its body began.

    At least `bytes_per_s` must arrive in every RATE_WINDOW_S. A file of declared size must also follow the schedule
    that completes it within `timeout_s`, but may be SCHEDULE_SLACK_S late. The size of other files is not known, so
    their minimum rate grows to the received bytes divided by `timeout_s`. With `bytes_per_s` 0, no rate is too slow.
    """

    bytes_per_s: float
    timeout_s: float
    declared_bytes: int | None
    _demanded: float = field(init=False, default=0.0)
    _goal: float = field(init=False, default=0.0)
    _window_end_s: float = field(init=False, default=0.0)

    def deadline_s(self, received_bytes: int, now_s: float) -> float:
        """Return when the download becomes too slow if nothing more arrives."""
        if not self.bytes_per_s:
            return math.inf
        if received_bytes >= self._goal:
            self._demanded = max(self.bytes_per_s, 0 if self.declared_bytes else received_bytes / self.timeout_s)
            self._goal = received_bytes + self._demanded * RATE_WINDOW_S
            self._window_end_s = now_s + RATE_WINDOW_S
        return min(self._window_end_s, self._schedule_s(received_bytes))

    def _schedule_s(self, received_bytes: int) -> float:
        if not self.declared_bytes:
            return math.inf
        return SCHEDULE_SLACK_S + self.timeout_s * received_bytes / self.declared_bytes

    @property
    def demanded_bytes_per_s(self) -> float:
        return max(self._demanded, (self.declared_bytes or 0) / self.timeout_s)


@dataclass
class Progress:
    """Reports a download in `fetching` events: at most one a second, and at most twenty if its size is known."""

    events: EventSink
    total_bytes: int | None
    _next_bytes: float = 0.0
    _next_s: float = field(default_factory=lambda: time.monotonic() + REPORT_EVERY_S)

    def report(self, received_bytes: int) -> None:
        if received_bytes < self._next_bytes or time.monotonic() < self._next_s:
            return
        self.events.submit(Fetching(received_bytes=received_bytes, total_bytes=self.total_bytes))
        self._next_bytes = received_bytes + (self.total_bytes or REPORT_EVERY_BYTES * REPORTS) / REPORTS
        self._next_s = time.monotonic() + REPORT_EVERY_S


async def _receive(response: ClientResponse, video: IncomingVideo, rate: MinimumRate, progress: Progress) -> None:
    """Write the response's body to `video`, durably. Raises UrlUnreachable if it arrives too slowly."""
    async with _enforced(rate) as report_progress:
        async for chunk in net.read_body(response):
            await video.write(chunk)
            report_progress(video.size)
            progress.report(video.size)
    await video.sync()


@asynccontextmanager
async def _enforced(rate: MinimumRate) -> AsyncIterator[Callable[[int], None]]:
    """Yield a function to call with the number of bytes received so far. Raises UrlUnreachable if they are too few."""
    clock = asyncio.get_running_loop().time
    started_at = clock()

    def report_progress(received_bytes: int) -> None:
        limit.reschedule(started_at + rate.deadline_s(received_bytes, clock() - started_at))

    try:
        async with asyncio.timeout_at(started_at + rate.deadline_s(0, 0.0)) as limit:
            yield report_progress
    except TimeoutError:
        if not limit.expired():
            raise
        needed = f"{rate.demanded_bytes_per_s:.0f} bytes/s"
        raise UrlUnreachable(f"The download is too slow: a file of this size needs {needed}.") from None
