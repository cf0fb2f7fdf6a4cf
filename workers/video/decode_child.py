"""The child that decodes an untrusted video: `python -I decode.py SPEC`, started by `frames.py` for each video.

It gives up what it does not need (`confine.py`), reads the times of all frames (packets alone, nothing decoded),
chooses those to sample, then seeks to and decodes only them. On its output comes one JSON line, what it found, and
then each sample: `FRAME_HEADER` (time in seconds, width, height) and the raw RGB bytes. It imports nothing of this
package, for it runs without a search path and with an empty environment.

decord2 decodes where its seeking is exact: MP4, QuickTime and Matroska whose groups of pictures are closed. For the
rest (open groups, MPEG-TS, AVI) decord2 3.4 gives frames that lie up to a whole group beside the one asked for, so
there PyAV seeks, and each frame is known by its own timestamp. PyAV decodes all that is not short, too: its memory
does not grow.
"""

import json
import os
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
import numpy as np
import numpy.typing as npt
from PIL import Image

Rgb = npt.NDArray[np.uint8]  # [height, width, 3]
FRAME_HEADER = struct.Struct("<dII")
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts"
CONFINE = Path(__file__).resolve().parents[2] / "service/contract/sandbox/confine.py"
FILES = 32
GIB = 1 << 30
TIME_ERROR_S = 1e-3
"""Containers round times to this: a frame that starts this much after a sampling time counts as shown by then."""
SINGLE_COLOUR_SPREAD = 8
"""Levels out of 255 between which a frame of one single colour may vary once it has been encoded."""
SEEK_BACK_S = (0, 1, 4, 16, 64)
MAX_DECODE_ERRORS = 100
MAX_DECORD_BYTES = GIB // 2
"""decord2 decodes ahead without bound where its thread gets little time: all frames of a file must fit into this."""
DECORD_PIXEL_BYTES = 4.5
"""What it keeps of each pixel: as it was decoded, and as RGB."""


@dataclass(frozen=True)
class Spec:
    """What to sample. `from_s`: leave out the samples before it (an earlier attempt has seen them)."""

    path: str
    demuxer: str
    interval_s: float
    max_samples: int
    max_side_px: int
    cpu_s: int
    start_s: float | None = None
    end_s: float | None = None
    from_s: float | None = None


@dataclass
class Index:
    """The frames of a video in the order in which they are shown, known from its packets."""

    pts: "array[int]" = field(default_factory=lambda: array("q"))  # in units of the stream's time base
    keys: "array[int]" = field(default_factory=lambda: array("q"))  # of those, where decoding can start
    seconds: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    closed: bool = True
    """No frame is shown before a keyframe that it is stored behind, and none is stored to be left out."""


class Video:
    """An open file, decoded by PyAV."""

    def __init__(self, path: str, demuxer: str) -> None:
        options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
        self.container = av.open(path, "r", format=demuxer, container_options=options, options=options)
        self.stream = next(
            s for s in self.container.streams.video if not s.disposition & av.stream.Disposition.attached_pic
        )
        self.stream.thread_count = 1
        assert self.stream.time_base is not None
        self.time_base = self.stream.time_base
        self.index = self._read_index(demuxer)
        self._frames: Iterator[av.VideoFrame] = iter(())
        self._newest: av.VideoFrame | None = None

    def _read_index(self, demuxer: str) -> Index:
        index, key = Index(), None
        for packet in self.container.demux(self.stream):
            pts = packet.dts if packet.pts is None else packet.pts
            if not packet.size or pts is None:
                continue
            if packet.is_discard:
                index.closed = False
                continue
            if packet.is_keyframe:
                key = pts
                index.keys.append(pts)
            elif key is None or pts < key:
                index.closed = False
            index.pts.append(pts)
        index.pts = _in_order(index.pts)
        index.keys = _in_order(index.keys)
        origin = 0.0
        if demuxer == "mpegts" and self.container.start_time:  # its clock starts anywhere; other formats' at zero
            origin = self.container.start_time / av.time_base
        index.seconds = np.asarray(index.pts, np.float64) * float(self.time_base) - origin
        return index

    def frame(self, number: int) -> Rgb | None:
        """Return frame `number` as it is shown, or the next that can be decoded; None where there is none."""
        target = self.index.pts[number]
        at = self._newest.pts if self._newest else None
        keys = bisect_right(self.index.keys, target)  # keyframes up to there
        if at is None or at > target or (keys and at < self.index.keys[keys - 1]):
            self._seek(target)
        while self._newest is None or self._newest.pts is None or self._newest.pts < target:
            following = self._next()
            if following is None:
                break
            self._newest = following
        if self._newest is None:
            return None
        turns = round(self._newest.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(self._newest.to_ndarray(format="rgb24"), turns))

    def _seek(self, target: int) -> None:
        """Go to a frame that can be decoded and is shown no later than `target`."""
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


def _in_order(pts: "array[int]") -> "array[int]":
    """Return them sorted, each once. (`np.unique` would take a table eight times as large for it.)"""
    times = np.sort(np.array(pts, np.int64))
    new = np.ones(len(times), bool)
    new[1:] = times[1:] != times[:-1]
    return array("q", times[new].tobytes())


class DecordFailed(Exception):
    """decord2 cannot read this file, or this frame of it."""


class Decord:
    """The same frames by decord2."""

    def __init__(self, path: str) -> None:
        os.environ.setdefault("PATH", "")  # decord appends to it when it is imported
        import decord  # noqa: PLC0415

        self._error: type[Exception] = decord.DECORDError
        try:
            self._reader = decord.VideoReader(path, num_threads=1)
        except self._error as error:
            raise DecordFailed from error
        self.count = len(self._reader)

    def frame(self, number: int) -> Rgb:
        """Return frame `number` as it is shown."""
        try:
            frame: Rgb = self._reader[number].asnumpy()
        except self._error as error:
            raise DecordFailed from error
        if frame.shape[2] != 3:  # it takes the padding of narrow frames' lines, up to 72 pixels wide, for channels
            raise DecordFailed
        return frame


def open_decord(spec: Spec, video: Video) -> Decord | None:
    """Return decord2's reader where it is exact for this file."""
    exact = spec.demuxer in ("mov", "matroska") and video.index.closed and len(video.container.streams.video) == 1
    pixels = len(video.index.pts) * video.stream.width * video.stream.height
    if not exact or pixels * DECORD_PIXEL_BYTES > MAX_DECORD_BYTES:
        return None
    try:
        reader = Decord(spec.path)
    except DecordFailed:
        return None
    return reader if reader.count == len(video.index.pts) else None


def plan(seconds: npt.NDArray[np.float64], spec: Spec) -> tuple[list[int], float]:
    """Choose the frames to sample among those shown at `seconds`; return their numbers and the interval in use.

    Every `interval_s` from the first frame of the part on the frame that is on screen, and the part's last frame. The
    interval is widened where more than `max_samples` would come. No frame: the part begins after the video's end.
    """
    start_s, end_s = spec.start_s or 0.0, np.inf if spec.end_s is None else spec.end_s
    inside = np.flatnonzero((seconds >= start_s - TIME_ERROR_S) & (seconds <= end_s + TIME_ERROR_S))
    if not inside.size:  # between two frames: the one on screen
        on_screen = int(np.searchsorted(seconds, start_s, side="right")) - 1
        return ([on_screen] if 0 <= on_screen < len(seconds) - 1 else []), spec.interval_s
    first, last = int(inside[0]), int(inside[-1])
    if spec.max_samples == 1:
        return [first], spec.interval_s
    span_s = seconds[last] - seconds[first]
    interval_s = spec.interval_s
    if np.floor((span_s - TIME_ERROR_S) / interval_s) + 2 > spec.max_samples:
        interval_s = float(span_s / (spec.max_samples - 1))
    steps = max(0, int(np.ceil((span_s - TIME_ERROR_S) / interval_s)))
    times = seconds[first] + interval_s * np.arange(steps)
    shown = np.searchsorted(seconds, times + TIME_ERROR_S, side="right") - 1
    numbers = np.unique(np.concatenate([np.clip(shown, first, last), [last]]))
    return [int(number) for number in numbers], interval_s


def fit(frame: Rgb, max_side_px: int) -> Image.Image:
    """Return the frame, scaled down by area where a side is longer than `max_side_px`."""
    image = Image.fromarray(frame)
    factor = max_side_px / max(image.size)
    if factor >= 1:
        return image
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BOX)


class Samples:
    """The chosen frames, decoded one after the other."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.video = Video(spec.path, spec.demuxer)
        self.decord = open_decord(spec, self.video)
        self.seconds = self.video.index.seconds
        self.numbers, self.interval_s = plan(self.seconds, spec) if len(self.seconds) else ([], spec.interval_s)
        if spec.from_s is not None:
            self.numbers = [n for n in self.numbers if self.seconds[n] >= spec.from_s - 1e-5]
        elif self.numbers[:1] == [0]:
            self.numbers = self._past_blank_start()

    def found(self) -> dict[str, Any]:
        """Return what the parent is told before the frames."""
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
            frame = self._frame(number)
            if frame is not None:
                yield round(float(self.seconds[number]), 6), fit(frame, self.spec.max_side_px)

    def _frame(self, number: int) -> Rgb | None:
        if self.decord is not None:
            try:
                return self.decord.frame(number)
            except DecordFailed:
                self.decord = None
        return self.video.frame(number)

    def _past_blank_start(self) -> list[int]:
        """Move the first sample past frames of one single colour, at most to the second sample."""
        if len(self.numbers) < 2:
            return self.numbers
        latest_s = self.seconds[0] + self.spec.interval_s + TIME_ERROR_S
        for number in range(self.numbers[1] + 1):
            frame = self._frame(number) if self.seconds[number] <= latest_s else None
            if frame is None:
                break
            if (np.ptp(frame.reshape(-1, 3), axis=0) > SINGLE_COLOUR_SPREAD).any():
                return sorted({number, *self.numbers[1:]})
        return self.numbers


def main(spec: Spec, out: BinaryIO) -> None:
    """Write what was found and all samples of `spec` to `out`."""
    samples = Samples(spec)
    out.write(json.dumps(samples.found()).encode() + b"\n")
    out.flush()
    for time_s, image in samples:
        out.write(FRAME_HEADER.pack(time_s, *image.size))
        out.write(image.tobytes())
        out.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the worker, which gives its jobs back
    av.logging.set_level(None)
    SPEC = Spec(**json.loads(sys.argv[1]))
    os.environ.setdefault("PATH", "")  # decord appends to it when it is imported
    import decord  # noqa: F401  while files can still be opened

    runpy.run_path(str(CONFINE))["confine"](SPEC.path, SPEC.cpu_s, FILES)
    main(SPEC, sys.stdout.buffer)
