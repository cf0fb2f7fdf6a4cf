"""CPU time of sampling 720p and 1080p H.264 with the decode child's code (PyAV), and with decord2 if it is installed.

    python bench/decode_speed.py
    python bench/decode_speed.py --seconds 4      a quick check

Writes clips of moving texture with a keyframe every 2 s and every 10 s, and samples each every 2 s and every 0.5 s.
Both decoders use one thread and give the same RGB frames. CPU time is printed because it
depends least on what else runs.
"""

import argparse
import importlib.util
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from workers.video.decoding.picture import Pictures
from workers.video.decoding.video import open_video
from workers.video.sampling import plan_samples

Rgb = npt.NDArray[np.uint8]
SIZES = {"720p": (1280, 720), "1080p": (1920, 1080)}
FPS = 25
KEYFRAME_EVERY_S = (2, 10)
INTERVALS_S = (2.0, 0.5)
SPEED_PX = 5
MAX_SIDE_PX = 1 << 20
"""Frames are not reduced, because decord2 does not reduce them either."""


def encode(path: Path, size: tuple[int, int], seconds: int, keyframe_every_s: int) -> None:
    """Write a clip in which a blurred random texture moves."""
    width, height = size
    noise = np.random.default_rng(1).integers(0, 256, (height // 8, width // 8 + 2 * seconds * FPS, 3), np.uint8)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("h264", rate=FPS, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", FPS * keyframe_every_s
        for k in range(seconds * FPS):
            step, offset = divmod(SPEED_PX * k, 8)
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(noise[:, step : step + width // 8 + 1]), "rgb24")
            large = picture.reformat(width + 8, height).to_ndarray(format="rgb24")
            out.mux(stream.encode(av.VideoFrame.from_ndarray(large[:, offset : offset + width], "rgb24")))
        out.mux(stream.encode())


def with_pyav(path: Path) -> Callable[[int], Rgb | None]:
    video, pictures = open_video(str(path), "mov", "h264"), Pictures(MAX_SIDE_PX, 1.0)

    def picture(number: int) -> Rgb | None:
        shown = video.shown(number)
        return None if shown is None else np.asarray(pictures.picture(shown.frame, shown.before, shown.after))

    return picture


def with_decord2(path: Path) -> Callable[[int], Rgb | None]:
    import decord  # noqa: PLC0415 (not a dependency)

    reader = decord.VideoReader(str(path), num_threads=1)
    return lambda number: reader[number].asnumpy()  # type: ignore[no-any-return]


def cpu_s(opener: Callable[[Path], Callable[[int], Rgb | None]], path: Path, numbers: Iterable[int]) -> float:
    """Return the CPU time of opening the clip and decoding these frames."""
    start = time.process_time()
    frame = opener(path)
    for number in numbers:
        assert frame(number) is not None
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=30, help="length of the clips")
    seconds: int = parser.parse_args().seconds
    openers = {"PyAV": with_pyav, **({"decord2": with_decord2} if importlib.util.find_spec("decord") else {})}
    print(f"{platform.machine()}, {os.cpu_count()} CPU cores, {time.strftime('%Y-%m-%d')}; CPU seconds per clip")
    print(f"{'clip':<8}{'keyframe every':>16}{'sample every':>14}" + "".join(f"{name:>10}" for name in openers))
    with tempfile.TemporaryDirectory() as directory:
        for name, size in SIZES.items():
            for keyframe_every_s in KEYFRAME_EVERY_S:
                path = Path(directory, f"{name}-{keyframe_every_s}.mp4")
                encode(path, size, seconds, keyframe_every_s)
                for interval_s in INTERVALS_S:
                    numbers, _ = plan_samples(np.arange(seconds * FPS) / FPS, interval_s, 10_000)
                    times_s = [cpu_s(opener, path, numbers) for opener in openers.values()]
                    row = f"{name:<8}{keyframe_every_s:>14} s{interval_s:>12g} s"
                    print(row + "".join(f"{time_s:>10.2f}" for time_s in times_s), flush=True)


if __name__ == "__main__":
    main()
