"""URL -> local file: what comes before the first stage where a video was not uploaded.

The file is whole and has its final name, or it is not there: it comes in under a name of this attempt's own, and what
an attempt whose worker was killed has left goes with the next one. What the file is, the probe says, as of an upload.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Set
from contextlib import asynccontextmanager

from aiohttp import ClientResponse
from yarl import URL

from service.contract.errors import UrlForbidden, UrlUnreachable
from service.contract.outbound import http as net
from service.contract.outbound.http import TransientFetchError
from service.contract.outbound.ssrf import HostAndPort, checked
from service.contract.storage.interface import IncomingVideo
from service.contract.storage.local import too_large
from workers.attempt import Attempt, Fetched

MAX_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)
PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Statuses that another try may not meet."""
PAUSES_S = (1.0, 5.0, 20.0)
"""Between one try and the next."""
HEAD_S = 30.0
"""From a question to the head of its answer."""
WINDOW_S = 20.0
"""The minimum rate is kept over spans of this length."""


async def fetch(attempt: Attempt) -> None:
    """Download the job's video into the storage, unless it was uploaded, is already there or is no longer needed.

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
            fetched = await _patiently(attempt, source.url, source.sha256)
    except TimeoutError:
        raise UrlUnreachable(f"The file took longer than {allowed_s:g} s to come.") from None
    attempt.fetched = fetched


async def _patiently(attempt: Attempt, address: str, sha256: str | None) -> Fetched:
    for pause_s in PAUSES_S:
        try:
            return await _once(attempt, address, sha256)
        except TransientFetchError:
            await asyncio.sleep(pause_s)
    return await _once(attempt, address, sha256)


async def _once(attempt: Attempt, address: str, sha256: str | None) -> Fetched:
    """Download the file and store it as the job's upload. With `sha256`, any other file raises UrlUnreachable."""
    settings, storage, job_id = attempt.context.settings, attempt.context.storage, attempt.record.id
    async with (
        _answer(checked(address, settings.allowed_hosts), attempt) as answer,
        storage.receive(settings.max_upload_bytes, job_id) as video,
    ):
        storage.check_free_space(answer.content_length or 0)
        await _download(answer, video, settings.fetch_min_rate)
        if sha256 not in (None, video.sha256):
            raise UrlUnreachable("The address gives a different file than when the job started.")
        await attempt.events.check_lease()  # after losing the lease it must not replace another attempt's file
        await video.commit(job_id)
        return Fetched(video.size, video.sha256)


@asynccontextmanager
async def _answer(url: URL, attempt: Attempt) -> AsyncIterator[ClientResponse]:
    """Ask, follow redirects, and give the answer that holds the file."""
    hosts = attempt.context.settings.allowed_hosts
    for _ in range(MAX_REDIRECTS + 1):
        async with _asked(url, attempt) as answer:
            if answer.status not in REDIRECTS:
                _check_head(answer, attempt.context.settings.max_upload_bytes)
                yield answer
                return
            url = next_url(url, answer.headers, hosts)
    raise UrlUnreachable(f"The address leads on more than {MAX_REDIRECTS} times.")


@asynccontextmanager
async def _asked(url: URL, attempt: Attempt) -> AsyncIterator[ClientResponse]:
    try:
        async with asyncio.timeout(HEAD_S) as limit:
            async with net.request("GET", url, attempt.context.settings.allowed_hosts) as answer:
                limit.reschedule(None)
                yield answer
    except TimeoutError:
        if not limit.expired():
            raise
        raise TransientFetchError(f"The address did not answer within {HEAD_S:g} s.") from None


def next_url(url: URL, headers: Mapping[str, str], hosts: Set[HostAndPort]) -> URL:
    """Return where a redirect leads to. Raises UrlForbidden, and UrlUnreachable where it leads nowhere."""
    try:
        target = url.join(URL(headers["Location"]))
    except (KeyError, ValueError):
        raise UrlUnreachable("The address leads on, but nowhere.") from None
    if url.scheme == "https" and target.scheme != "https":
        raise UrlForbidden("The address leads from https:// to another scheme.")
    return checked(str(target), hosts)


def _check_head(answer: ClientResponse, max_bytes: int) -> None:
    if answer.status in PASSING:
        raise TransientFetchError(f"The address answers with status {answer.status}.")
    if answer.status != 200:
        raise UrlUnreachable(f"The address answers with status {answer.status}.")
    if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UrlUnreachable("The address gives a compressed answer, though none was asked for.")
    if (answer.content_length or 0) > max_bytes:
        raise too_large(max_bytes)


async def _download(answer: ClientResponse, video: IncomingVideo, min_rate: int) -> None:
    """Write the response's body to `video`, durably. Raises UrlUnreachable if it arrives too slowly."""
    async with _at_pace(min_rate) as came:
        async for chunk in net.chunks(answer):
            await video.write(chunk)
            came(video.size)
    await video.sync()


@asynccontextmanager
async def _at_pace(min_rate: int) -> AsyncIterator[Callable[[int], None]]:
    """Give what is to be told how many bytes have come by now. Raises UrlUnreachable where they come too slowly."""
    goal = span = min_rate * WINDOW_S

    def came(count: int) -> None:
        nonlocal goal
        if count >= goal:
            goal = count + span
            patience.reschedule(asyncio.get_running_loop().time() + WINDOW_S)

    try:
        async with asyncio.timeout(WINDOW_S) as patience:
            yield came
    except TimeoutError:
        if not patience.expired():
            raise
        raise UrlUnreachable(f"The file comes too slowly: {min_rate} bytes a second are the least.") from None
