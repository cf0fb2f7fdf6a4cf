"""Peak memory of decoding: it must not grow with the video's length.

    python bench/decode_memory.py

Writes videos (H.264) of one minute, one hour and ten hours, samples each every two seconds through the decode child as
the worker does, and prints the child's peak resident memory and this process's growth. decord2 keeps up to about thirty
decoded frames in its queue, which a short video does not fill; beyond that (`--allowed-mib`) the longest may need no
more than the shortest, or the exit status is 1.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import psutil

from service.contract.probe import probe
from workers.frames import DecodeLimits, Part, open_frames

MIB = 1 << 20
SIZE = (640, 360)
INTERVAL_S = 2.0


@dataclass(frozen=True)
class Peak:
    name: str
    samples: int
    seconds: float
    child_mib: float
    here_mib: float


def write(path: Path, minutes: float, fps: int) -> None:
    """Write a video of slowly moving noise."""
    width, height = SIZE
    picture = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("h264", rate=fps, options={"preset": "ultrafast", "crf": "40"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", 10 * fps
        for k in range(int(minutes * 60 * fps)):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(picture, k // 50, axis=1), "rgb24")))
        out.mux(stream.encode())


def peak_mib(pid: int) -> float:
    """Return the highest resident memory that a process has had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


async def measure(name: str, path: Path) -> Peak:
    start, here, before = time.monotonic(), psutil.Process(), psutil.Process().memory_info().rss
    samples, child_mib, here_bytes = 0, 0.0, 0
    part = Part(interval_s=INTERVAL_S, max_samples=100_000)
    async with open_frames(path, await probe(path), part, DecodeLimits()) as frames:
        [child] = here.children()
        async for _ in frames:
            samples += 1
            child_mib = max(child_mib, peak_mib(child.pid))
            here_bytes = max(here_bytes, here.memory_info().rss - before)
    return Peak(name, samples, time.monotonic() - start, child_mib, here_bytes / MIB)


async def run(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as directory:
        peaks = []
        lengths_h = (options.hours / 10, options.hours)
        for name, minutes in (("1 minute", 1.0), *((f"{hours:g} hours", hours * 60) for hours in lengths_h)):
            path = Path(directory, "video.mp4")
            await asyncio.to_thread(write, path, minutes, options.fps)
            peaks.append(await measure(name, path))
    print(f"{SIZE[0]} x {SIZE[1]}, {options.fps} frames a second, a sample every {INTERVAL_S:g} s")
    print(f"{'':<12}{'samples':>9}{'seconds':>9}{'child MiB':>11}{'here MiB':>10}")
    for peak in peaks:
        here = f"{peak.here_mib:>10.1f}"
        print(f"{peak.name:<12}{peak.samples:>9}{peak.seconds:>9.1f}{peak.child_mib:>11.1f}{here}")
    more_mib = peaks[-1].child_mib + peaks[-1].here_mib - peaks[0].child_mib - peaks[0].here_mib
    print(f"the longest needs {more_mib:.1f} MiB more")
    return 0 if more_mib <= options.allowed_mib else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=10.0)
    parser.add_argument("--fps", type=int, default=2)
    parser.add_argument("--allowed-mib", type=float, default=128.0)
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
