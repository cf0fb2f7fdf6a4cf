"""Memory and time to the first frame when decoding a long video, compared with a short one. Neither should grow.

    python bench/decode_memory.py                   two minutes and two hours
    python bench/decode_memory.py --hours 10 --fps 5

Writes both videos (H.264, the same ten seconds of moving noise repeated) and samples each every two seconds through
the decode child, as the worker does. Prints for each video the time to the first sample, the child's peak resident
memory and the growth of this process. The exit status is 1 if the long video needs more than `--most` times the memory
of the short one.
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
ENCODED_S = 10
"""Seconds of video that are encoded. The rest of the file repeats them."""


@dataclass(frozen=True)
class Measurement:
    """Memory and times of decoding one video."""

    name: str
    file_mib: float
    samples: int
    first_s: float
    seconds: float
    child_mib: float
    parent_mib: float

    @property
    def total_mib(self) -> float:
        return self.child_mib + self.parent_mib

    def row(self) -> str:
        """Return the printed line."""
        numbers = f"{self.file_mib:>10.1f}{self.samples:>9}{self.first_s:>10.2f}{self.seconds:>9.1f}"
        return f"{self.name:<12}{numbers}{self.child_mib:>11.1f}{self.parent_mib:>12.1f}"


def encode(path: Path, fps: int) -> None:
    """Write `ENCODED_S` seconds of slowly moving noise, with one group of pictures per second and no B-frames."""
    width, height = SIZE
    picture = np.random.default_rng(0).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    picture = picture.repeat(8, axis=0).repeat(8, axis=1)
    options = {"preset": "ultrafast", "crf": "30", "bf": "0"}
    with av.open(str(path), "w") as out:
        stream = out.add_stream("h264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", fps
        for k in range(ENCODED_S * fps):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(picture, 2 * k, axis=1), "rgb24")))
        out.mux(stream.encode())


def repeat(source: Path, target: Path, times: int) -> None:
    """Write the packets of `source` to `target` `times` times in a row, with continuous timestamps."""
    with av.open(str(source)) as read, av.open(str(target), "w") as out:
        packets = [packet for packet in read.demux(video=0) if packet.size]
        timestamps = [packet.pts or 0 for packet in packets]
        length = timestamps[-1] + (packets[-1].duration or 0)
        stream = out.add_stream_from_template(read.streams.video[0])
        for k in range(times):
            for packet, timestamp in zip(packets, timestamps, strict=True):
                packet.stream = stream
                packet.time_base = read.streams.video[0].time_base
                packet.pts = packet.dts = timestamp + k * length
                out.mux(packet)


def peak_mib(pid: int) -> float:
    """Return the peak resident memory of a process so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


async def measure(name: str, path: Path) -> Measurement:
    """Sample a whole video through the decode child."""
    start, process = time.monotonic(), psutil.Process()
    before_bytes = process.memory_info().rss
    samples, first_s, child_mib, growth_bytes = 0, 0.0, 0.0, 0
    part = Part(interval_s=INTERVAL_S, max_samples=100_000)
    async with open_frames(path, await probe(path), part, DecodeLimits()) as frames:
        [child] = process.children()
        async for _ in frames:
            first_s = first_s or time.monotonic() - start
            samples += 1
            child_mib = max(child_mib, peak_mib(child.pid))
            growth_bytes = max(growth_bytes, process.memory_info().rss - before_bytes)
    seconds = time.monotonic() - start
    return Measurement(name, path.stat().st_size / MIB, samples, first_s, seconds, child_mib, growth_bytes / MIB)


async def run(options: argparse.Namespace) -> int:
    """Write and measure both videos, print the table, and return the exit status."""
    lengths_s = {f"{options.minutes:g} minutes": options.minutes * 60, f"{options.hours:g} hours": options.hours * 3600}
    measurements = []
    with tempfile.TemporaryDirectory() as directory:
        short, path = Path(directory, "short.mp4"), Path(directory, "video.mp4")
        encode(short, options.fps)
        for name, length_s in lengths_s.items():
            await asyncio.to_thread(repeat, short, path, round(length_s / ENCODED_S))
            measurements.append(await measure(name, path))
    machine = f"{platform.machine()}, {os.cpu_count()} CPU cores, {time.strftime('%Y-%m-%d')}"
    print(f"{SIZE[0]} x {SIZE[1]}, {options.fps} frames per second, one sample every {INTERVAL_S:g} s; {machine}")
    print(f"{'':<12}{'file MiB':>10}{'samples':>9}{'first s':>10}{'seconds':>9}{'child MiB':>11}{'parent MiB':>12}")
    for measurement in measurements:
        print(measurement.row())
    ratio = measurements[-1].total_mib / measurements[0].total_mib
    print(f"memory: {ratio:.2f} times that of the short video")
    return 0 if ratio <= options.most else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0, help="length of the short video")
    parser.add_argument("--hours", type=float, default=2.0, help="length of the long video")
    parser.add_argument("--fps", type=int, default=25, help="frames per second of both videos")
    parser.add_argument("--most", type=float, default=1.2, help="largest memory ratio for exit status 0")
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
