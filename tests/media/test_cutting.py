"""A part cut with FFmpeg, from one reported time to another, has exactly the frames between the two.

The part starts with the frame at the first time and ends before the frame at the second time.
"""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import av
import pytest
from av.filter import Graph

from service.contract.sandbox.subprocesses import ChildStarter
from tests.media.clips import CLIPS
from tests.media.test_times import EVERY_FRAME_S, samples
from tests.workers.clips import number_of

NAMES = ("h264.mp4", "ntsc.mp4", "offset.mp4", "offset.mkv", "offset.ts", "late.mkv", "late.ts", "open-gop.ts")
NAMES += ("edit-list.mp4", "variable.mkv", "mpeg2.mpg", "h264.flv", "wmv2.wmv", "animated.gif", "raw.h264")
pytestmark = pytest.mark.asyncio(loop_scope="module")
BY_NAME = {clip.name: clip for clip in CLIPS}


def cut_with_program(path: Path, start_s: float, end_s: float) -> list[int]:
    """Return the numbers of the frames that the `ffmpeg` program cuts."""
    part = path.with_name("part.mp4")
    times = ("-ss", f"{start_s:.6f}", "-to", f"{end_s:.6f}", "-fps_mode", "passthrough")
    subprocess.run(("ffmpeg", "-v", "error", "-i", path, *times, "-preset", "ultrafast", part), check=True)
    with av.open(str(part)) as container:
        return [number_of(frame.to_image()) for frame in container.decode(video=0)]


def cut_with_filter(path: Path, start_s: float, end_s: float) -> list[int]:
    """Return the numbers of the frames that the program's filter cuts, with the program's time zero."""
    with av.open(str(path)) as container:
        stream, graph, origin_s = container.streams.video[0], Graph(), (container.start_time or 0) / av.time_base
        part = f"start={start_s + origin_s:.6f}:end={end_s + origin_s:.6f}"
        graph.link_nodes(graph.add_buffer(template=stream), graph.add("trim", part), graph.add("buffersink"))
        graph.configure()
        for frame in container.decode(stream):
            graph.push(frame)
        graph.push(None)
        return list(_numbers(graph))


def _numbers(graph: Graph) -> Iterator[int]:
    while True:
        try:
            frame = graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        assert isinstance(frame, av.VideoFrame)
        yield number_of(frame.to_image())


@pytest.mark.parametrize("name", NAMES)
async def test_a_part_has_the_frames_between_two_reported_times(
    name: str, tmp_path: Path, starter: ChildStarter
) -> None:
    path = BY_NAME[name].write(tmp_path)
    reported = await samples(path, EVERY_FRAME_S, starter)
    for first, end in ((1, 9), (len(reported) // 2, len(reported) - 1)):
        expected = [number for number, _ in reported[first:end]]
        times = reported[first][1], reported[end][1]
        if not name.startswith("raw"):  # PyAV gives its frames no times; the program counts them
            assert cut_with_filter(path, *times) == expected
        if shutil.which("ffmpeg"):
            assert cut_with_program(path, *times) == expected
            path.with_name("part.mp4").unlink()


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="is about the ffmpeg program")
@pytest.mark.parametrize("name", ["mpeg4-b.avi", "xvid-packed.avi", "h264.avi"])
async def test_an_avi_with_b_frames_is_cut_with_the_documented_correction(
    name: str, tmp_path: Path, starter: ChildStarter
) -> None:
    path = BY_NAME[name].write(tmp_path)
    reported = await samples(path, EVERY_FRAME_S, starter)
    times = ("-select_streams", "v", "-show_entries", "frame=best_effort_timestamp_time", "-of", "csv=p=0")
    printed = subprocess.check_output(("ffprobe", "-v", "error", *times, path), text=True)
    first_s = float(printed.splitlines()[0].strip(","))
    expected = [number for number, _ in reported[5:20]]
    assert cut_with_program(path, reported[5][1] + first_s, reported[20][1] + first_s) == expected
