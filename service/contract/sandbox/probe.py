"""The probe: a confined child process inspects a video file before anything else reads it.

The probe runs twice for an uploaded video. The gateway probes each upload, so that a bad file is refused in the
response and no job is created. The worker probes right before it decodes: a file fetched from a URL never passed
through the gateway, the worker's limits may differ, and the decode child needs the container that the probe detects.
"""

import asyncio
import json
import logging
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from service.contract.errors import DecoderKilled, NotAVideo, UnsupportedMedia, VideoTooLarge, VideoTooLong
from service.contract.sandbox.formats import CODECS, EXCLUDED_CODECS, EXCLUDED_FORMATS, FORMATS, named
from service.contract.sandbox.subprocesses import ChildProcess, ChildStarter, child_arguments

CHILD = Path(__file__).with_name("probe_child.py")
LIBRARIES = ("av", "av.logging", "av.subtitles.codeccontext", "av.subtitles.stream", "av.video.stream")
"""What the child imports; a `ChildStarter` has imported it before."""
MAX_STREAMS = 32
MAX_OUTPUT_BYTES = 16_384
START_TIMEOUT_S = 60.0
EXIT_TIMEOUT_S = 1.0

log = logging.getLogger("sharecap.sandbox")


@dataclass(frozen=True)
class VideoLimits:
    """The containers and codecs that are accepted, and the largest video. `wall_s` is the time limit of the probe."""

    max_pixels: int = 8192 * 4352
    max_duration_s: float = 12 * 3600.0
    wall_s: float = 20.0
    formats: frozenset[str] = frozenset(FORMATS)
    codecs: frozenset[str] = frozenset(CODECS)


class VideoInfo(BaseModel):
    """The first video stream.

    `width` and `height` are as stored. `pixel_aspect` is the width of a pixel divided by its height. `rotation` turns
    the picture clockwise, in degrees.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    container: str
    codec: str
    width: int
    height: int
    rotation: int = 0
    pixel_aspect: float = Field(default=1.0, gt=0)
    fps: float | None = None
    duration_s: float | None = None
    streams: int = 1

    @property
    def shown_size(self) -> tuple[int, int]:
        """Width and height as a viewer sees them: upright and with square pixels, the longer side of a pixel kept."""
        width, height = self.width * max(self.pixel_aspect, 1), self.height * max(1 / self.pixel_aspect, 1)
        size = round(width), round(height)
        return size[::-1] if self.rotation % 180 else size


class VideoReport(VideoInfo):
    """The child's report on a video."""

    outcome: Literal["video"]


class ForeignReport(BaseModel):
    """The child's report on a file of a known kind that is not accepted."""

    outcome: Literal["foreign"]
    container: str


class DamageReport(BaseModel):
    """The child's report on a file that looks like a video and cannot be read."""

    outcome: Literal["damage"]
    detail: str


class EmptyReport(BaseModel):
    """The child's report on a file of an unknown kind, or without a video stream."""

    outcome: Literal["nothing", "no video"]


Report = VideoReport | ForeignReport | DamageReport | EmptyReport
_REPORT: TypeAdapter[Report] = TypeAdapter(Annotated[Report, Field(discriminator="outcome")])
"""Validates the child's output, which is not trusted: a malicious file may control the child."""


class NoSandbox(Exception):
    """This machine cannot confine child processes, so the service must not open videos."""


def check_sandbox() -> None:
    """Start a confined child on a file that is not a video. Logs a warning for each optional layer that is missing.

    Raises NoSandbox if the child cannot be confined, RuntimeError if it fails for another reason, and
    subprocess.TimeoutExpired if it does not end.
    """
    command = (sys.executable, *child_arguments(CHILD, child_argument(CHILD, VideoLimits(max_pixels=1))))
    child = subprocess.run(command, capture_output=True, text=True, env={}, timeout=START_TIMEOUT_S, check=False)
    if child.returncode:
        reason = (child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1]
        if "confine.py" in child.stderr:
            raise NoSandbox(f"videos cannot be opened safely here ({reason}): Linux with seccomp filters is required")
        raise RuntimeError(f"the probe's child process does not work: {reason}")
    layers = json.loads(child.stdout)["confinement"]
    if not layers["landlock_abi"]:
        log.warning("this kernel has no Landlock: only FFmpeg's own rules keep a video from naming other files to read")
    if not layers["namespaces"]:
        log.warning("this system grants no user namespace: videos are decoded without an own network namespace")


async def probe(path: Path, limits: VideoLimits | None = None, starter: ChildStarter | None = None) -> VideoInfo:
    """Return the properties of the video at `path`; `duration_s` is None if the file does not state it.

    `starter` starts the child; without one, a starter is created for this call. Raises NotAVideo, UnsupportedMedia,
    VideoTooLarge, VideoTooLong, or DecoderKilled.
    """
    if starter is None:
        async with ChildStarter(LIBRARIES) as temporary:
            return await probe(path, limits, temporary)
    limits = limits or VideoLimits()
    if path.stat().st_size == 0:
        raise NotAVideo("The file is empty.")
    match await _run_child(path, limits, starter):
        case VideoReport() as info:
            check(info, limits)
            return info
        case ForeignReport(container=container):
            reason = f": {EXCLUDED_FORMATS[container]}." if container in EXCLUDED_FORMATS else "."
            raise UnsupportedMedia(f"The file is {container}{reason} Accepted are {named(limits.formats)}.")
        case DamageReport(detail=detail):
            raise NotAVideo(f"The file starts as a video but cannot be read: {detail}.")
        case EmptyReport(outcome="no video"):
            raise NotAVideo("The file has no video stream with a frame in it.")
        case EmptyReport():
            raise NotAVideo(f"The file is not a video. Accepted are {named(limits.formats)}.")


def check(info: VideoInfo, limits: VideoLimits) -> None:
    """Raise NotAVideo, UnsupportedMedia, VideoTooLarge or VideoTooLong if the video exceeds a limit."""
    if info.codec not in limits.codecs:
        reason = f": {EXCLUDED_CODECS[info.codec]}." if info.codec in EXCLUDED_CODECS else "."
        accepted = ", ".join(codec for codec in CODECS if codec in limits.codecs)
        raise UnsupportedMedia(f"The video's codec is {info.codec}{reason} Accepted are {accepted}.")
    if info.width < 1 or info.height < 1:
        raise NotAVideo("The video stream has no frame size.")
    if info.width * info.height > limits.max_pixels:
        raise VideoTooLarge(f"Frames are {info.width} × {info.height}; the maximum is {limits.max_pixels} pixels.")
    if info.duration_s is not None and info.duration_s > limits.max_duration_s:
        raise VideoTooLong(f"The video lasts {info.duration_s:.0f} s; the maximum is {limits.max_duration_s:.0f} s.")
    if info.streams > MAX_STREAMS:
        raise UnsupportedMedia(f"The file has {info.streams} streams; the maximum is {MAX_STREAMS}.")


async def _run_child(path: Path, limits: VideoLimits, starter: ChildStarter) -> Report:
    async with starter.child(CHILD, child_argument(path.resolve(), limits)) as child:
        try:
            async with asyncio.timeout(limits.wall_s):
                output = await _read_output(child)
            return _REPORT.validate_json(output)
        except TimeoutError:
            raise NotAVideo(f"The file could not be inspected within {limits.wall_s:.0f} s.") from None
        except ValueError:
            if await _exit_status(child) == -signal.SIGKILL:
                raise DecoderKilled from None
            raise NotAVideo("The file crashed the probe.") from None


def child_argument(path: Path, limits: VideoLimits) -> str:
    """Return the child's argument: what to inspect."""
    accepted = {"formats": sorted(limits.formats), "codecs": sorted(limits.codecs)}
    return json.dumps({"path": str(path), "max_pixels": limits.max_pixels, **accepted})


async def _exit_status(child: ChildProcess) -> int | None:
    """Return the exit status of a child that has closed its output, None if it does not exit."""
    with suppress(TimeoutError):
        async with asyncio.timeout(EXIT_TIMEOUT_S):
            return await child.wait()
    return None


async def _read_output(child: ChildProcess) -> bytes:
    """Return everything the child prints, up to slightly more than `MAX_OUTPUT_BYTES`: a real report is shorter."""
    output = b""
    while len(output) <= MAX_OUTPUT_BYTES and (more := await child.output.read(MAX_OUTPUT_BYTES)):
        output += more
    return output
