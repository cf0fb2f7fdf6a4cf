"""The child process that decodes one untrusted video: `decode_child.py SPEC`, started by `frames.py`.

The child drops its privileges (`confine.py`), reads the times of all frames from the packets without decoding them,
chooses the frames to sample, and seeks to and decodes only those. It writes one JSON line with what it knows about the
video, then for each sample `FRAME_HEADER` (time in seconds, width, height) and the raw RGB bytes. It runs without a
module search path and with an empty environment, so it imports nothing from this repository.

The file is opened as the container and the codec that the probe detected, whatever else its bytes may look like: FFmpeg
receives both as the only ones allowed. Each frame is identified by its own timestamp, never by its number in the file.
"""

import json
import runpy
import signal
import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import av
import av.logging
import av.subtitles.codeccontext
import av.subtitles.stream
import numpy as np
import numpy.typing as npt
from PIL import Image

Rgb = npt.NDArray[np.uint8]  # [height, width, 3]
FRAME_HEADER = struct.Struct("<dII")
SANDBOX = Path(__file__).resolve().parents[2] / "service/contract/sandbox"
FORMATS = runpy.run_path(str(SANDBOX / "formats.py"))
SAMPLING = runpy.run_path(str(Path(__file__).with_name("sampling.py")))
FILES = 32
SINGLE_COLOUR_SPREAD = 8
"""Levels (of 255) by which the pixels of a single-colour frame may differ after encoding."""
SEEK_BACK_S = (0, 1, 4, 16, 64)
"""Distances before the target that are tried in turn until a decodable frame is found."""
MAX_DECODE_ERRORS = 100


@dataclass(frozen=True)
class Spec:
    """What to sample. Samples before `from_s` are skipped, because an earlier attempt has processed them."""

    path: str
    demuxer: str
    codec: str
    interval_s: float
    max_samples: int
    max_side_px: int
    cpu_s: int
    start_s: float | None = None
    end_s: float | None = None
    from_s: float | None = None


@dataclass
class Index:
    """The frames of a video in presentation order, as listed by its packets."""

    pts: "array[int]" = field(default_factory=lambda: array("q"))  # in units of the stream's time base
    keyframe_pts: "array[int]" = field(default_factory=lambda: array("q"))  # frames at which decoding can start
    seconds: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


class CodecRefused(Exception):
    """The video's codec is not the one that the probe found."""


class Video:
    """An open video file."""

    def __init__(self, path: str, demuxer: str, codec: str) -> None:
        options = FORMATS["decode_options"](demuxer, codec)
        self.container = av.open(path, "r", format=demuxer, container_options=options, options=options)
        self.stream = next(
            s for s in self.container.streams.video if not s.disposition & av.stream.Disposition.attached_pic
        )
        actual = self.stream.codec_context.codec.canonical_name
        if actual != codec:
            raise CodecRefused(f"the codec is {actual}, not {codec}")
        self.stream.thread_count = 1
        assert self.stream.time_base is not None
        self.time_base = self.stream.time_base
        self.index = self._read_index(demuxer)
        self._frames: Iterator[av.VideoFrame] = iter(())
        self._newest: av.VideoFrame | None = None

    def _read_index(self, demuxer: str) -> Index:
        index = Index()
        for packet in self.container.demux(self.stream):
            pts = packet.dts if packet.pts is None else packet.pts
            if not packet.size or pts is None or packet.is_discard:
                continue
            if packet.is_keyframe:
                index.keyframe_pts.append(pts)
            index.pts.append(pts)
        index.pts = _sorted_unique(index.pts)
        index.keyframe_pts = _sorted_unique(index.keyframe_pts)
        origin = 0.0
        if demuxer == "mpegts" and self.container.start_time:  # the clock of MPEG-TS starts at any value
            origin = self.container.start_time / av.time_base
        index.seconds = np.asarray(index.pts, np.float64) * float(self.time_base) - origin
        return index

    def frame(self, number: int) -> Rgb | None:
        """Return frame `number`, upright, or the next frame that can be decoded. None: no frame can be decoded."""
        target = self.index.pts[number]
        if self._must_seek(target):
            self._seek(target)
        while self._newest is None or self._newest.pts is None or self._newest.pts < target:
            following = self._next()
            if following is None:
                break
            self._newest = following
        if self._newest is None:
            return None
        quarter_turns = round(self._newest.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(self._newest.to_ndarray(format="rgb24"), quarter_turns))

    def _must_seek(self, target: int) -> bool:
        """Return whether `target` lies before the newest frame, or a keyframe lies between the two."""
        position = self._newest.pts if self._newest else None
        if position is None or position > target:
            return True
        keyframes = bisect_right(self.index.keyframe_pts, target)  # number of keyframes up to `target`
        return keyframes > 0 and position < self.index.keyframe_pts[keyframes - 1]

    def _seek(self, target: int) -> None:
        """Go to a decodable frame that is shown no later than `target`."""
        for back_s in SEEK_BACK_S:
            self.container.seek(target - int(back_s / self.time_base), stream=self.stream)
            self._frames = self.container.decode(self.stream)
            self._newest = self._next()
            if self._newest is not None and self._newest.pts is not None and self._newest.pts <= target:
                return

    def _next(self) -> av.VideoFrame | None:
        for _ in range(MAX_DECODE_ERRORS):
            try:
                return next(self._frames, None)
            except av.FFmpegError:
                self._frames = self.container.decode(self.stream)
        return None


def _sorted_unique(pts: "array[int]") -> "array[int]":
    """Return the sorted values without duplicates. `np.unique` would need eight times the memory."""
    times = np.sort(np.array(pts, np.int64))
    is_first = np.ones(len(times), bool)
    is_first[1:] = times[1:] != times[:-1]
    return array("q", times[is_first].tobytes())


def downscale(frame: Rgb, max_side_px: int) -> Image.Image:
    """Return the frame as an image, reduced so that no side is longer than `max_side_px`."""
    image = Image.fromarray(frame)
    factor = max_side_px / max(image.size)
    if factor >= 1:
        return image
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BOX)


class Samples:
    """The frames to sample, decoded one at a time."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.video = Video(spec.path, spec.demuxer, spec.codec)
        self.seconds = self.video.index.seconds
        plan: tuple[list[int], float] = SAMPLING["plan_samples"](
            self.seconds, spec.interval_s, spec.max_samples, spec.start_s, spec.end_s
        )
        self.numbers, self.interval_s = plan
        if spec.from_s is not None:
            self.numbers = [n for n in self.numbers if self.seconds[n] >= spec.from_s - 1e-5]
        elif self.numbers[:1] == [0]:
            self.numbers = self._skip_blank_start()

    def description(self) -> dict[str, Any]:
        """Return what the parent reads before the frames."""
        seconds = self.seconds
        step_s = float(seconds[-1] - seconds[0]) / (len(seconds) - 1) if len(seconds) > 1 else 0.0
        return {
            "interval_s": self.interval_s,
            "samples": len(self.numbers),
            "duration_s": float(seconds[-1]) + step_s if len(seconds) else 0.0,
            "fps": 1 / step_s if step_s > 0 else 0.0,
        }

    def __iter__(self) -> Iterator[tuple[float, Image.Image]]:
        for number in self.numbers:
            frame = self.video.frame(number)
            if frame is not None:
                yield round(float(self.seconds[number]), 6), downscale(frame, self.spec.max_side_px)

    def _skip_blank_start(self) -> list[int]:
        """Return the numbers with the first one moved past single-colour frames, at most to the second sample."""
        if len(self.numbers) < 2:
            return self.numbers
        latest_s = self.seconds[0] + self.spec.interval_s + SAMPLING["TIME_ERROR_S"]
        for number in range(self.numbers[1] + 1):
            frame = self.video.frame(number) if self.seconds[number] <= latest_s else None
            if frame is None:
                break
            if (np.ptp(frame.reshape(-1, 3), axis=0) > SINGLE_COLOUR_SPREAD).any():
                return sorted({number, *self.numbers[1:]})
        return self.numbers


def main(spec: Spec, out: BinaryIO) -> None:
    """Write the description of the video and all samples of `spec` to `out`."""
    samples = Samples(spec)
    out.write(json.dumps(samples.description()).encode() + b"\n")
    out.flush()
    for time_s, image in samples:
        out.write(FRAME_HEADER.pack(time_s, *image.size))
        out.write(image.tobytes())
        out.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the worker, which returns its jobs
    av.logging.set_level(None)
    SPEC = Spec(**json.loads(sys.argv[1]))
    runpy.run_path(str(SANDBOX / "confine.py"))["confine"](SPEC.path, SPEC.cpu_s, FILES)
    main(SPEC, sys.stdout.buffer)
