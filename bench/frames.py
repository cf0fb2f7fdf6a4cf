"""Sampling frames of long H.264 clips: this service's decoder, PyAV with threads, decord2, OpenCV and ffmpeg.

    python bench/frames.py                 1080p: one minute sampled every 2 s, and ten minutes sampled every 10 s
    python bench/frames.py --json FILE     also writes the figures

The clips repeat one group of pictures of 4.8 s with three B-frames, so drawing them is cheap. All contenders return RGB
frames. The service's decoder runs as in a worker: its time includes the fork, the confinement, reducing the frames to
1024 pixels and sending them through a pipe. The libraries decode in this process and have been imported before;
`ffmpeg` is a process of its own. They return frames of full size. Contenders that are not installed are left out.
Each runs `--rounds` times, in turns, and its fastest run counts.
"""

import argparse
import asyncio
import importlib.util
import json
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream

from service.contract.sandbox.probe import VideoInfo
from service.contract.sandbox.subprocesses import ChildStarter
from workers.video.frames import LIBRARIES, DecodeLimits, Part, open_frames

FPS = 25
GROUP_FRAMES = 120
SIZE, SMOKE_SIZE = (1920, 1080), (320, 180)
SPEED_PX = 6
SEEK_FROM_S = 5.0
"""OpenCV seeks if samples are at least this far apart, and otherwise reads on."""
TARGET = 1.1
OURS = "this service"


@dataclass(frozen=True)
class Clip:
    """A clip, and how often it is sampled."""

    name: str
    path: Path
    frames: int
    interval_s: float

    @property
    def numbers(self) -> list[int]:
        """The frames to sample, of which the last frame is always one."""
        step = round(self.interval_s * FPS)
        return sorted({*range(0, self.frames, step), self.frames - 1})


def group_of_pictures(stream: VideoStream, size: tuple[int, int]) -> "list[av.Packet[VideoStream]]":
    """Encode one closed group of moving noise."""
    width, height = size
    random = np.random.default_rng(0)
    texture = random.integers(0, 256, (height // 8 + 1, (width + SPEED_PX * GROUP_FRAMES) // 8 + 1, 3), np.uint8)
    texture = texture.repeat(8, 0).repeat(8, 1)
    packets = []
    for k in range(GROUP_FRAMES):
        picture = np.ascontiguousarray(texture[:height, SPEED_PX * k : SPEED_PX * k + width])
        packets += stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24"))
    return packets + stream.encode()


def write_clip(path: Path, size: tuple[int, int], groups: int) -> None:
    """Write a clip that repeats one group of pictures."""
    with av.open(str(path), "w") as out:
        options = {"preset": "veryfast", "x264-params": f"keyint={GROUP_FRAMES}:bframes=3:scenecut=0:open-gop=0"}
        stream = out.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        packets = group_of_pictures(stream, size)
        for group in range(groups):
            for packet in packets:
                copy = av.Packet(bytes(packet))
                assert packet.pts is not None and packet.dts is not None and packet.time_base is not None
                offset = int(group * Fraction(GROUP_FRAMES, FPS) / packet.time_base)
                copy.pts, copy.dts, copy.time_base = packet.pts + offset, packet.dts + offset, packet.time_base
                copy.is_keyframe, copy.stream = packet.is_keyframe, stream
                out.mux(copy)


async def sample(clip: Clip, starter: ChildStarter) -> int:
    """Sample as a worker does. Returns the number of frames."""
    info = VideoInfo(container="mov", codec="h264", width=SIZE[0], height=SIZE[1])
    part = Part(interval_s=clip.interval_s, max_samples=1000)
    async with open_frames(clip.path, info, part, DecodeLimits(), starter) as frames:
        return len([frame async for frame in frames])


def with_pyav(clip: Clip) -> int:
    """Decode from the keyframe before each sample, with one thread per core, unless the next sample comes first."""
    kept = 0
    with av.open(str(clip.path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        assert stream.time_base is not None
        step = round(1 / FPS / stream.time_base)
        position = -1
        for number in clip.numbers:
            if number // GROUP_FRAMES > position // GROUP_FRAMES:
                container.seek(number * step, stream=stream)
            for frame in container.decode(stream):
                if frame.pts is not None and frame.pts >= number * step:
                    frame.to_ndarray(format="rgb24")
                    break
            position, kept = number, kept + 1
    return kept


def with_pyav_without_seeking(clip: Clip) -> int:
    """Decode all frames with one thread per core."""
    wanted = set(clip.numbers)
    with av.open(str(clip.path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        decoded = (frame for k, frame in enumerate(container.decode(stream)) if k in wanted)
        return len([frame.to_ndarray(format="rgb24") for frame in decoded])


def with_decord2(clip: Clip) -> int:
    import decord  # noqa: PLC0415 (not a dependency)

    return len(decord.VideoReader(str(clip.path)).get_batch(clip.numbers).asnumpy())


def with_opencv(clip: Clip) -> int:
    import cv2  # noqa: PLC0415 (not a dependency)

    capture, position, kept = cv2.VideoCapture(str(clip.path)), 0, 0
    for number in clip.numbers:
        if clip.interval_s >= SEEK_FROM_S:
            capture.set(cv2.CAP_PROP_POS_FRAMES, number)
            position = number
        while position <= number:
            assert capture.grab()
            position += 1
        kept += len(capture.retrieve()[1][..., ::-1].copy()) > 0
    return kept


def with_ffmpeg(clip: Clip) -> int:
    rate = ["-vf", f"fps=1/{clip.interval_s:g}", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    command = ["ffmpeg", "-v", "error", "-i", str(clip.path), *rate]
    pixels = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    return len(pixels) and len(clip.numbers)


def contenders() -> dict[str, Callable[[Clip], int]]:
    """Return what is installed, and print what is not."""
    chosen: dict[str, Callable[[Clip], int]] = {
        "PyAV, threads": with_pyav,
        "PyAV, threads, all frames": with_pyav_without_seeking,
    }
    for name, installed, function in (
        ("decord2, get_batch", importlib.util.find_spec("decord"), with_decord2),
        ("OpenCV", importlib.util.find_spec("cv2"), with_opencv),
        ("ffmpeg -vf fps", shutil.which("ffmpeg"), with_ffmpeg),
    ):
        if installed:
            chosen[name] = function
        else:
            print(f"{name} is not installed")
    return chosen


@dataclass(frozen=True)
class Cost:
    wall_s: float
    cpu_s: float


def cpu_s() -> float:
    """Return the CPU time of this process and of all children that have ended."""
    usages = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


async def measure(clip: Clip, rounds: int) -> dict[str, Cost]:
    """Return the cheapest of `rounds` runs of each contender."""
    best: dict[str, Cost] = {}
    for _ in range(rounds):
        start_cpu_s = cpu_s()
        async with ChildStarter(LIBRARIES) as starter:
            await sample(clip, starter)  # the server imports its libraries; the clip is in the page cache
            start = time.perf_counter()
            count = await sample(clip, starter)
            wall_s = time.perf_counter() - start
        keep(best, OURS, Cost(wall_s, (cpu_s() - start_cpu_s) / 2))
        assert count == len(clip.numbers)
        for name, function in contenders().items():
            start, start_cpu_s = time.perf_counter(), cpu_s()
            assert function(clip) == len(clip.numbers), name
            keep(best, name, Cost(time.perf_counter() - start, cpu_s() - start_cpu_s))
    return best


def keep(best: dict[str, Cost], name: str, cost: Cost) -> None:
    if cost.wall_s < best.get(name, Cost(math.inf, 0)).wall_s:
        best[name] = cost


def ratio(costs: dict[str, Cost]) -> float:
    """Return the service's time relative to the fastest other contender."""
    return costs[OURS].wall_s / min(cost.wall_s for name, cost in costs.items() if name != OURS)


def table(clip: Clip, costs: dict[str, Cost]) -> str:
    fastest_first = sorted(costs.items(), key=lambda item: item[1].wall_s)
    rows = [f"{clip.name}: {clip.frames / FPS:.0f} s, a sample every {clip.interval_s:g} s", ""]
    rows += ["| | s | CPU s |", "|---|---:|---:|"]
    rows += [f"| {name} | {cost.wall_s:.2f} | {cost.cpu_s:.2f} |" for name, cost in fastest_first]
    reached = "reached" if ratio(costs) <= TARGET else "not reached"
    rows += ["", f"relative to the fastest other: {ratio(costs):.2f} (target: ≤ {TARGET}, {reached})", ""]
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="the smallest size: shows only that the benchmark works")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    size, rounds = (SMOKE_SIZE, 1) if options.smoke else (SIZE, options.rounds)
    plans = [("one minute", 13, 2.0), ("ten minutes", 125, 10.0)]
    if options.smoke:
        plans = [("one minute", 2, 2.0)]
    print(f"{platform.machine()}, {os.cpu_count()} CPU cores, {time.strftime('%Y-%m-%d')}, {size[0]} x {size[1]}\n")
    ratios = {}
    with tempfile.TemporaryDirectory(prefix="sharecap-bench-") as directory:
        for name, groups, interval_s in plans:
            clip = Clip(name, Path(directory, f"{groups}.mp4"), groups * GROUP_FRAMES, interval_s)
            write_clip(clip.path, size, groups)
            costs = asyncio.run(measure(clip, rounds))
            print(table(clip, costs), flush=True)
            ratios[name] = ratio(costs)
    if options.json:
        options.json.write_text(json.dumps(ratios, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
