"""URL -> local file: what comes before the first stage where a video was not uploaded.

The file is whole and has its final name, or it is not there: it comes in under a name of this attempt's own, and what
an attempt whose worker was killed has left goes with the next one. What the file is, the probe says, as of an upload.
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Mapping, Set
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import ClientResponse
from yarl import URL

from service.contract.errors import UrlForbidden, UrlUnreachable, VideoTooLarge
from service.contract.outbound import http as net
from service.contract.outbound.http import TransientFetchError
from service.contract.outbound.ssrf import HostAndPort, checked
from service.contract.storage.local import PART, check_room, storing, sync_names
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
WRITE_BYTES = 1 << 20


async def fetch(attempt: Attempt) -> None:
    """Have the job's video at `attempt.upload`, unless it was uploaded, or is there or not needed any more.

    Raises UrlForbidden, UrlUnreachable, VideoTooLarge, StorageFull, and Fenced or CancelRequested.
    """
    source = attempt.job.source
    if source is None or source.url is None or attempt.keyframes_complete:
        return
    if source.sha256 is not None and attempt.upload.exists():
        return
    attempt.upload.parent.mkdir(parents=True, exist_ok=True)
    for part in attempt.upload.parent.glob(f"{attempt.record.id}.*{PART}"):
        part.unlink(missing_ok=True)
    allowed_s = attempt.context.settings.fetch_timeout_s
    try:
        async with asyncio.timeout(allowed_s):
            fetched = await _patiently(attempt, source.url)
    except TimeoutError:
        raise UrlUnreachable(f"The file took longer than {allowed_s:g} s to come.") from None
    if source.sha256 not in (None, fetched.sha256):
        attempt.remove_upload()
        raise UrlUnreachable("The address gives another file than when the job began.")
    attempt.fetched = fetched


async def _patiently(attempt: Attempt, address: str) -> Fetched:
    for pause_s in PAUSES_S:
        try:
            return await _once(attempt, address)
        except TransientFetchError:
            await asyncio.sleep(pause_s)
    return await _once(attempt, address)


async def _once(attempt: Attempt, address: str) -> Fetched:
    part = attempt.upload.with_name(f"{attempt.record.id}.{attempt.epoch}{PART}")
    try:
        async with _answer(checked(address, attempt.context.settings.allowed_hosts), attempt) as answer:
            fetched = await _store(answer, part, attempt)
        await attempt.events.check_lease()  # or another attempt's file would be replaced
        with storing():
            await asyncio.to_thread(_keep, part, attempt.upload)
        return fetched
    finally:
        part.unlink(missing_ok=True)


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
    _check_size(answer.content_length or 0, max_bytes)


def _check_size(count: int, max_bytes: int) -> None:
    if count > max_bytes:
        raise VideoTooLarge(f"The file is larger than {max_bytes} bytes, the most that is taken.")


async def _store(answer: ClientResponse, part: Path, attempt: Attempt) -> Fetched:
    """Write the answer's body to `part`, durably."""
    settings = attempt.context.settings
    check_room(part.parent, settings.min_free_bytes, answer.content_length or 0)
    sha256, count, pending = hashlib.sha256(), 0, bytearray()

    def write() -> None:
        check_room(part.parent, settings.min_free_bytes, len(pending))
        sha256.update(pending)
        file.write(pending)
        file.flush()
        pending.clear()

    with storing(), part.open("xb") as file:
        async with _at_pace(settings.fetch_min_rate) as came:
            async for chunk in net.chunks(answer):
                count += len(chunk)
                came(count)
                _check_size(count, settings.max_upload_bytes)
                pending += chunk
                if len(pending) >= WRITE_BYTES:
                    await asyncio.to_thread(write)
        await asyncio.to_thread(write)
        await asyncio.to_thread(os.fsync, file.fileno())
    return Fetched(count, sha256.hexdigest())


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


def _keep(part: Path, target: Path) -> None:
    part.rename(target)
    sync_names(target.parent)
