"""Samples the frames of a video file, with their times. First stage of the pipeline.

A child process (`decode_child.py`) does all decoding. If it crashes, only its own video fails. At most one frame is in
memory here at a time; the child waits until it is read.
"""

import asyncio
import json
import math
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image
from pydantic import BaseModel, ConfigDict

from service.contract.errors import DecodeFailed, DecoderDied, DecoderKilled, InvalidOption
from service.contract.sandbox.probe import LIBRARIES as PROBE_LIBRARIES
from service.contract.sandbox.probe import VideoInfo
from service.contract.sandbox.subprocesses import ChildProcess, ChildStarter
from workers.video.decode_child import FRAME_HEADER, Spec

T = TypeVar("T")
CHILD = Path(__file__).with_name("decode_child.py")
LIBRARIES = (*PROBE_LIBRARIES, "av.filter", "av.video.reformatter", "numpy", "PIL.Image", "PIL.WebPImagePlugin")
"""What probe and decode child import; a `ChildStarter` has imported it before."""
MAX_SIDE_PX = 1024


@dataclass(frozen=True)
class Part:
    """The frames to sample; times in seconds. Samples before `from_s` are skipped."""

    interval_s: float
    max_samples: int
    start_s: float | None = None
    end_s: float | None = None
    from_s: float | None = None


@dataclass(frozen=True)
class DecodeLimits:
    """Limits of a decode child: CPU time, total time, and time until the next frame."""

    cpu_s: int = 3600
    wall_s: float = 4 * 3600.0
    stall_s: float = 180.0


class Description(BaseModel):
    """What the child writes before the frames. It is not trusted: a malicious file may control the child."""

    model_config = ConfigDict(allow_inf_nan=False)

    interval_s: float
    samples: int
    duration_s: float
    fps: float


@dataclass(frozen=True)
class Frame:
    """One sampled frame: upright, RGB, no side longer than `MAX_SIDE_PX`."""

    time_s: float
    image: Image.Image


class Frames:
    """The samples of one video; can be iterated once. `interval_s` is the sampling interval used."""

    def __init__(self, child: ChildProcess, limits: DecodeLimits) -> None:
        self._child = child
        self._limits = limits
        self._deadline = asyncio.get_running_loop().time() + limits.wall_s
        self.interval_s = 0.0
        self.duration_s = 0.0
        self.fps = 0.0
        self.read_s = 0.0
        """Time spent waiting for the child."""

    async def open(self) -> None:
        """Read the child's description of the video. Raises DecodeFailed; InvalidOption if the part has no frame."""
        try:
            video = Description.model_validate_json(await self._read(self._child.output.readline()))
        except ValueError:
            raise await self._failure() from None
        self.interval_s, self.duration_s, self.fps = video.interval_s, video.duration_s, video.fps
        if not video.samples and self.duration_s:
            raise InvalidOption(f"start_s lies after the end of the video, which lasts {self.duration_s:.2f} s.")

    async def __aiter__(self) -> AsyncGenerator[Frame, None]:
        """Yield the samples in order. Raises DecodeFailed if the child fails or yields no sample."""
        count = 0
        while header := await self._read(self._child.output.read(1)):
            try:
                header += await self._read(self._child.output.readexactly(FRAME_HEADER.size - 1))
                time_s, width, height = FRAME_HEADER.unpack(header)
                if not (0 < width <= MAX_SIDE_PX and 0 < height <= MAX_SIDE_PX and math.isfinite(time_s)):
                    raise DecodeFailed("The video's decoder returned a frame with an impossible size or time.")
                pixels = await self._read(self._child.output.readexactly(width * height * 3))
            except asyncio.IncompleteReadError:
                raise await self._failure() from None
            count += 1
            yield Frame(time_s, Image.frombytes("RGB", (width, height), pixels))
        if await self._read(self._child.wait()) or not count:
            raise await self._failure()

    async def _read(self, reading: Awaitable[T]) -> T:
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            async with asyncio.timeout(min(self._limits.stall_s, self._deadline - start)):
                return await reading
        except TimeoutError:
            raise DecodeFailed("Decoding the video took too long.") from None
        finally:
            self.read_s += loop.time() - start

    async def _failure(self) -> DecodeFailed:
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await self._child.wait()
        status = self._child.returncode
        if status == -signal.SIGKILL:
            return DecoderKilled()
        reason = {None: "did not answer", 0: "found no frame in it"}.get(status, "ended early")
        killed = status is not None and status < 0 and status != -signal.SIGXCPU
        error_class = DecoderDied if killed else DecodeFailed
        return error_class(f"The video could not be decoded: its decoder {reason}.")


@asynccontextmanager
async def open_frames(
    path: Path, info: VideoInfo, part: Part, limits: DecodeLimits, starter: ChildStarter | None = None
) -> AsyncIterator[Frames]:
    """Start a child that decodes `part` of a probed file. The child is killed when the context ends.

    `starter` starts the child; without one, a starter is created for this video.
    """
    if starter is None:
        async with ChildStarter(LIBRARIES) as temporary, open_frames(path, info, part, limits, temporary) as frames:
            yield frames
        return
    spec = Spec(
        path=str(path.resolve()),
        demuxer=info.container,
        codec=info.codec,
        pixel_aspect=info.pixel_aspect,
        max_side_px=MAX_SIDE_PX,
        cpu_s=limits.cpu_s,
        **asdict(part),
    )
    async with starter.child(CHILD, json.dumps(asdict(spec))) as child:
        frames = Frames(child, limits)
        await frames.open()
        yield frames
