"""What decoding a long video takes beside a short one: memory must not grow with the length, nor the wait for a frame.

    python bench/decode_memory.py                   two minutes and two hours
    python bench/decode_memory.py --hours 10 --fps 5

Writes both videos (H.264, the same ten seconds of moving noise over and over), samples each every two seconds through
the decode child as the worker does, and prints for each the time until the first sample has come, the child's peak
resident memory and this process's growth. The exit status is 1 where the long one needs more than `--most` times the
memory of the short one.
"""

import argparse
import asyncio
import os
import platform
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import psutil

from service.contract.sandbox.probe import probe
from workers.video.frames import DecodeLimits, Part, open_frames

MIB = 1 << 20
SIZE = (640, 360)
INTERVAL_S = 2.0
SECONDS = 10
"""Of video that are encoded; the rest is their repetition."""


@dataclass(frozen=True)
class Peak:
    name: str
    file_mib: float
    samples: int
    first_s: float
    seconds: float
    child_mib: float
    here_mib: float

    @property
    def mib(self) -> float:
        return self.child_mib + self.here_mib

    def row(self) -> str:
        numbers = f"{self.file_mib:>10.1f}{self.samples:>9}{self.first_s:>10.2f}{self.seconds:>9.1f}"
        return f"{self.name:<12}{numbers}{self.child_mib:>11.1f}{self.here_mib:>10.1f}"


def encode(path: Path, fps: int) -> None:
    """Write `SECONDS` of slowly moving noise, a group of pictures a second, without B-frames."""
    width, height = SIZE
    picture = np.random.default_rng(0).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    picture = picture.repeat(8, axis=0).repeat(8, axis=1)
    options = {"preset": "ultrafast", "crf": "30", "bf": "0"}
    with av.open(str(path), "w") as out:
        stream = out.add_stream("h264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", fps
        for k in range(SECONDS * fps):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(picture, 2 * k, axis=1), "rgb24")))
        out.mux(stream.encode())


def repeat(source: Path, target: Path, times: int) -> None:
    """Write the packets of `source` `times` times over, with times that go on."""
    with av.open(str(source)) as read, av.open(str(target), "w") as out:
        packets = [packet for packet in read.demux(video=0) if packet.size]
        places = [packet.pts or 0 for packet in packets]
        length = places[-1] + (packets[-1].duration or 0)
        stream = out.add_stream_from_template(read.streams.video[0])
        for k in range(times):
            for packet, place in zip(packets, places, strict=True):
                packet.stream = stream
                packet.time_base = read.streams.video[0].time_base
                packet.pts = packet.dts = place + k * length
                out.mux(packet)


def peak_mib(pid: int) -> float:
    """Return the highest resident memory that a process has had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


async def measure(name: str, path: Path) -> Peak:
    start, here, before = time.monotonic(), psutil.Process(), psutil.Process().memory_info().rss
    samples, first_s, child_mib, here_bytes = 0, 0.0, 0.0, 0
    part = Part(interval_s=INTERVAL_S, max_samples=100_000)
    async with open_frames(path, await probe(path), part, DecodeLimits()) as frames:
        [child] = here.children()
        async for _ in frames:
            first_s = first_s or time.monotonic() - start
            samples += 1
            child_mib = max(child_mib, peak_mib(child.pid))
            here_bytes = max(here_bytes, here.memory_info().rss - before)
    seconds = time.monotonic() - start
    return Peak(name, path.stat().st_size / MIB, samples, first_s, seconds, child_mib, here_bytes / MIB)


async def run(options: argparse.Namespace) -> int:
    lengths_s = {f"{options.minutes:g} minutes": options.minutes * 60, f"{options.hours:g} hours": options.hours * 3600}
    peaks = []
    with tempfile.TemporaryDirectory() as directory:
        once, path = Path(directory, "once.mp4"), Path(directory, "video.mp4")
        encode(once, options.fps)
        for name, length_s in lengths_s.items():
            await asyncio.to_thread(repeat, once, path, round(length_s / SECONDS))
            peaks.append(await measure(name, path))
    machine = f"{platform.machine()}, {os.cpu_count()} processors, {time.strftime('%Y-%m-%d')}"
    print(f"{SIZE[0]} x {SIZE[1]}, {options.fps} frames a second, a sample every {INTERVAL_S:g} s; {machine}")
    print(f"{'':<12}{'file MiB':>10}{'samples':>9}{'first s':>10}{'seconds':>9}{'child MiB':>11}{'here MiB':>10}")
    for peak in peaks:
        print(peak.row())
    ratio = peaks[-1].mib / peaks[0].mib
    print(f"memory: {ratio:.2f} times that of the short one")
    return 0 if ratio <= options.most else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0, help="of the short video")
    parser.add_argument("--hours", type=float, default=2.0, help="of the long video")
    parser.add_argument("--fps", type=int, default=25)
    parser.add_argument("--most", type=float, default=1.2, help="the ratio above which the exit status is 1")
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
