"""The child process that decodes one untrusted video: `decode_child.py SPEC`, started by `frames.py`.

The child drops its privileges (`confine.py`), reads the times of all frames, chooses the frames to sample, and decodes
those. It writes one JSON line with what it knows about the video, then for each sample `FRAME_HEADER` (time in seconds,
width, height) and the raw RGB bytes. It runs without a module search path and with an empty environment, so it imports
nothing from this repository; `decoding/` is loaded by its path.

The file is opened as the container and the codec that the probe detected, whatever else its bytes may look like: FFmpeg
receives both as the only ones allowed. Each frame is identified by its own timestamp, never by its number in the file.
"""

import json
import runpy
import signal
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import av.logging
from PIL import Image

FRAME_HEADER = struct.Struct("<dII")
FOLDER = Path(__file__).resolve().parent
SANDBOX = FOLDER.parents[1] / "service/contract/sandbox"
SAMPLING = runpy.run_path(str(FOLDER / "sampling.py"))
VIDEO = runpy.run_path(str(FOLDER / "decoding/video.py"))
PICTURE = runpy.run_path(str(FOLDER / "decoding/picture.py"))
FILES = 32
SINGLE_COLOUR_SPREAD = 8
"""Levels (of 255) by which the pixels of a single-colour frame may differ after encoding."""


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
    pixel_aspect: float = 1.0


class Samples:
    """The frames to sample, decoded one at a time."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.video = VIDEO["open_video"](spec.path, spec.demuxer, spec.codec)
        self.pictures = PICTURE["Pictures"](spec.max_side_px, spec.pixel_aspect)
        self.seconds = self.video.times_us / 1e6
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
        """Yield the time and the picture of each sample. No frame is yielded twice."""
        latest_us = -1
        for number in self.numbers:
            shown = self.video.shown(number)
            if shown is not None and shown.time_us > latest_us:
                latest_us = shown.time_us
                yield shown.time_us / 1e6, self._picture(shown)

    def _picture(self, shown: Any) -> Image.Image:
        image: Image.Image = self.pictures.picture(shown.frame, shown.before, shown.after)
        return image

    def _skip_blank_start(self) -> list[int]:
        """Return the numbers with the first one moved past single-colour frames, at most to the second sample."""
        if len(self.numbers) < 2:
            return self.numbers
        latest_s = self.seconds[0] + self.spec.interval_s + SAMPLING["TIME_ERROR_S"]
        for number in range(self.numbers[1] + 1):
            shown = self.video.shown(number) if self.seconds[number] <= latest_s else None
            if shown is None:
                break
            extrema: Any = self._picture(shown).getextrema()
            if any(highest - lowest > SINGLE_COLOUR_SPREAD for lowest, highest in extrema):
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
