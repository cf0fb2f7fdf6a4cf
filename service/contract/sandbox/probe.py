"""What a file is, found out by a child process that may come to harm: before anything else reads a video.

The gateway asks before it accepts an upload, the workers ask before they decode.
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
from service.contract.sandbox.subprocesses import end

CHILD = Path(__file__).with_name("probe_child.py")
CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4")
CONTAINERS = "MP4, QuickTime, Matroska, WebM, AVI and MPEG-TS"
MAX_STREAMS = 32
MAX_FPS = 1000
MAX_ANSWER_BYTES = 16_384
START_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Limits:
    """What a video may be at most; `wall_s` bounds the looking itself."""

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
    """This machine does not let a child give its rights up, and without that no video is opened."""


def check_sandbox() -> None:
    """Raise NoSandbox where the child cannot give its rights up, found out on a file that is no video.

    Raises RuntimeError or subprocess.TimeoutExpired where it ends for another reason, or not at all.
    """
    command = [*_command(CHILD), "1"]
    tried = subprocess.run(command, capture_output=True, text=True, env={}, timeout=START_TIMEOUT_S, check=False)
    if tried.returncode:
        why = (tried.stderr.strip().splitlines() or [f"exit status {tried.returncode}"])[-1]
        if "confine.py" in tried.stderr:
            raise NoSandbox(f"videos cannot be opened safely here ({why}): that needs Linux with seccomp filters")
        raise RuntimeError(f"the child that looks into videos does not work: {why}")


async def probe(path: Path, limits: Limits | None = None) -> VideoInfo:
    """Return what the video at `path` is.

    Raises NotAVideo, UnsupportedMedia, VideoTooLarge or VideoTooLong. A duration that the file does not tell is None.
    """
    limits = limits or Limits()
    if path.stat().st_size == 0:
        raise NotAVideo("The file is empty.")
    found = await _ask_child(path, limits)
    match found["found"]:
        case "video":
            info = VideoInfo.model_validate(found)
        case "foreign":
            raise UnsupportedMedia(f"The file is {found['container']}; taken are {CONTAINERS}.")
        case "no video":
            raise NotAVideo("The file has no video stream with a frame in it.")
        case "damage":
            raise NotAVideo(f"The file starts as a video but cannot be read: {found['detail']}.")
        case _:
            raise NotAVideo(f"The file is no video; taken are {CONTAINERS}.")
    check(info, limits)
    return info


def check(info: VideoInfo, limits: Limits) -> None:
    """Raise where `info` is outside of what is taken."""
    if info.codec not in CODECS:
        raise UnsupportedMedia(f"The video's codec is {info.codec}; taken are {', '.join(CODECS)}.")
    if info.width < 1 or info.height < 1:
        raise NotAVideo("The video stream tells no frame size.")
    if info.width * info.height > limits.max_pixels:
        raise VideoTooLarge(f"Frames are {info.width} × {info.height}; at most {limits.max_pixels} pixels are taken.")
    if info.duration_s is not None and info.duration_s > limits.max_duration_s:
        raise VideoTooLong(f"The video lasts {info.duration_s:.0f} s; at most {limits.max_duration_s:.0f} s are taken.")
    if info.fps is not None and info.fps > MAX_FPS:
        raise UnsupportedMedia(f"The video has {info.fps:.0f} frames a second; at most {MAX_FPS} are taken.")
    if info.streams > MAX_STREAMS:
        raise UnsupportedMedia(f"The file has {info.streams} streams; at most {MAX_STREAMS} are taken.")


async def _ask_child(path: Path, limits: Limits) -> dict[str, Any]:
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
            answer = await _read(child)
        found = json.loads(answer)
    except TimeoutError:
        raise NotAVideo(f"The file could not be looked into within {limits.wall_s:.0f} s.") from None
    except ValueError:
        raise NotAVideo("The file broke the program that looked into it.") from None
    finally:
        await end(child)
    assert isinstance(found, dict)
    return found


def _command(path: Path) -> tuple[str, ...]:
    return sys.executable, "-I", str(CHILD), str(path)


async def _read(child: Process) -> bytes:
    """Return the child's whole output, or as much of it as an honest child could write."""
    assert child.stdout is not None
    answer = b""
    while len(answer) <= MAX_ANSWER_BYTES and (more := await child.stdout.read(MAX_ANSWER_BYTES)):
        answer += more
    return answer
