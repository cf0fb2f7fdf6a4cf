"""Reads videos for uploads in threads, so that a slow disk or pipe does not stop the event loop.

Only the part of a video that is being sent is in memory.
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO, cast

import httpx

CHUNKS_PER_PART = 16
"""httpx reads chunks of 64 KiB. Each visit to a thread reads this many."""


class ThreadedBody(httpx.AsyncByteStream):
    """The body of a request, read in threads. It can be sent more than once if `body` can."""

    def __init__(self, body: httpx.SyncByteStream) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = iter(self._body)
        while part := await asyncio.to_thread(lambda: b"".join(islice(chunks, CHUNKS_PER_PART))):
            yield part


@asynccontextmanager
async def opened(video: str | os.PathLike[str] | BinaryIO) -> AsyncIterator[BinaryIO]:
    """Yield the video as a file that can be read again from its start. Raises OSError.

    A pipe, whose size is not known before it was read, is copied to a temporary file.
    """
    if isinstance(video, str | os.PathLike):
        file = await asyncio.to_thread(Path(video).open, "rb")
        with file:
            async with opened(cast(BinaryIO, file)) as readable:
                yield readable
    elif video.seekable():
        yield video
    else:
        with tempfile.TemporaryFile() as copy:
            await asyncio.to_thread(shutil.copyfileobj, video, copy)
            yield cast(BinaryIO, copy)
