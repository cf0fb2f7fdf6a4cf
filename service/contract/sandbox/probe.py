"""The probe: a confined child process inspects a video file before anything else reads it.

The probe runs twice for an uploaded video. The gateway probes each upload, so that a bad file is refused in the
response and no job is created. The worker probes right before it decodes: a file fetched from a URL never passed
through the gateway, the worker's limits may differ, and the decode child needs the container that the probe detects.
"""

import asyncio
import json
import subprocess
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from service.contract.errors import NotAVideo, UnsupportedMedia, VideoTooLarge, VideoTooLong
from service.contract.sandbox.formats import CODECS, CONTAINERS
from service.contract.sandbox.subprocesses import kill_and_wait

CHILD = Path(__file__).with_name("probe_child.py")
MAX_STREAMS = 32
MAX_FPS = 1000
MAX_OUTPUT_BYTES = 16_384
START_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class VideoLimits:
    """The largest video that is accepted; `wall_s` is the time limit of the probe itself."""

    max_pixels: int = 8192 * 4352
    max_duration_s: float = 12 * 3600.0
    wall_s: float = 20.0


class VideoInfo(BaseModel):
    """The first video stream. `width` and `height` are as stored; `rotation` turns them clockwise, in degrees."""

    container: str
    codec: str
    width: int
    height: int
    rotation: int = 0
    fps: float | None = None
    duration_s: float | None = None
    streams: int = 1

    @property
    def shown_size(self) -> tuple[int, int]:
        """Width and height as a viewer sees them."""
        return (self.height, self.width) if self.rotation % 180 else (self.width, self.height)


class NoSandbox(Exception):
    """This machine cannot confine child processes, so the service must not open videos."""


def check_sandbox() -> None:
    """Start a confined child on a file that is not a video.

    Raises NoSandbox if the child cannot be confined, RuntimeError if it fails for another reason, and
    subprocess.TimeoutExpired if it does not end.
    """
    command = [*_command(CHILD), "1"]
    child = subprocess.run(command, capture_output=True, text=True, env={}, timeout=START_TIMEOUT_S, check=False)
    if child.returncode:
        reason = (child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1]
        if "confine.py" in child.stderr:
            raise NoSandbox(f"videos cannot be opened safely here ({reason}): Linux with seccomp filters is required")
        raise RuntimeError(f"the probe's child process does not work: {reason}")


async def probe(path: Path, limits: VideoLimits | None = None) -> VideoInfo:
    """Return the properties of the video at `path`; `duration_s` is None if the file does not state it.

    Raises NotAVideo, UnsupportedMedia, VideoTooLarge or VideoTooLong.
    """
    limits = limits or VideoLimits()
    if path.stat().st_size == 0:
        raise NotAVideo("The file is empty.")
    report = await _run_child(path, limits)
    match report["found"]:
        case "video":
            info = VideoInfo.model_validate(report)
        case "foreign":
            raise UnsupportedMedia(f"The file is {report['container']}; accepted are {CONTAINERS}.")
        case "no video":
            raise NotAVideo("The file has no video stream with a frame in it.")
        case "damage":
            raise NotAVideo(f"The file starts as a video but cannot be read: {report['detail']}.")
        case _:
            raise NotAVideo(f"The file is not a video; accepted are {CONTAINERS}.")
    check(info, limits)
    return info


def check(info: VideoInfo, limits: VideoLimits) -> None:
    """Raise NotAVideo, UnsupportedMedia, VideoTooLarge or VideoTooLong if the video exceeds a limit."""
    if info.codec not in CODECS:
        raise UnsupportedMedia(f"The video's codec is {info.codec}; accepted are {', '.join(CODECS)}.")
    if info.width < 1 or info.height < 1:
        raise NotAVideo("The video stream has no frame size.")
    if info.width * info.height > limits.max_pixels:
        raise VideoTooLarge(f"Frames are {info.width} × {info.height}; the maximum is {limits.max_pixels} pixels.")
    if info.duration_s is not None and info.duration_s > limits.max_duration_s:
        raise VideoTooLong(f"The video lasts {info.duration_s:.0f} s; the maximum is {limits.max_duration_s:.0f} s.")
    if info.fps is not None and info.fps > MAX_FPS:
        raise UnsupportedMedia(f"The video has {info.fps:.0f} frames per second; the maximum is {MAX_FPS}.")
    if info.streams > MAX_STREAMS:
        raise UnsupportedMedia(f"The file has {info.streams} streams; the maximum is {MAX_STREAMS}.")


async def _run_child(path: Path, limits: VideoLimits) -> dict[str, Any]:
    child = await asyncio.create_subprocess_exec(
        *_command(path.resolve()),
        str(limits.max_pixels),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=DEVNULL,
        env={},
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(limits.wall_s):
            output = await _read_output(child)
        report = json.loads(output)
    except TimeoutError:
        raise NotAVideo(f"The file could not be inspected within {limits.wall_s:.0f} s.") from None
    except ValueError:
        raise NotAVideo("The file crashed the probe.") from None
    finally:
        await kill_and_wait(child)
    assert isinstance(report, dict)
    return report


def _command(path: Path) -> tuple[str, ...]:
    return sys.executable, "-I", str(CHILD), str(path)


async def _read_output(child: Process) -> bytes:
    """Return everything the child prints, up to slightly more than `MAX_OUTPUT_BYTES`: a real report is shorter."""
    assert child.stdout is not None
    output = b""
    while len(output) <= MAX_OUTPUT_BYTES and (more := await child.stdout.read(MAX_OUTPUT_BYTES)):
        output += more
    return output
