"""An open video: the time of each of its frames, and any frame of it. The decode child loads this file by its path.

The times come from the packets if the container stores when each frame is shown. Otherwise the whole video is decoded
once for its times; frames are then identified by their position in the decoder's output. Every frame that is returned
has its own time.
"""

import runpy
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from workers.video.decoding.stream import File, Index

FOLDER = Path(__file__).resolve().parent
SANDBOX = FOLDER.parents[2] / "service/contract/sandbox"
FORMATS = runpy.run_path(str(SANDBOX / "formats.py"))
WEBP_STRUCTURE = runpy.run_path(str(SANDBOX / "webp.py"))
TIMELINE = runpy.run_path(str(FOLDER / "timeline.py"))
STREAM = runpy.run_path(str(FOLDER / "stream.py"))
WEBP = runpy.run_path(str(FOLDER / "webp.py"))
SEEK_BACK_S = (0, 1, 4, 16, 64)
"""Distances before a keyframe that are tried in turn until a decodable frame is shown no later than the target."""
Times = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shown:
    """A frame, its time from time zero, and the frames next to it, if there are any."""

    time_us: int
    frame: av.VideoFrame
    before: av.VideoFrame | None
    after: Callable[[], av.VideoFrame | None]


@dataclass(frozen=True)
class Decoded:
    """A frame of a decoder. `stamp` rises from frame to frame: its timestamp, or its number in the video."""

    stamp: int
    frame: av.VideoFrame


class Window:
    """The newest frame of a decoder, with the frames next to it."""

    def __init__(self, frames: Iterator[Decoded]) -> None:
        self._frames = frames
        self._following: Decoded | None = None
        self.before: Decoded | None = None
        self.newest: Decoded | None = None

    @property
    def stamp(self) -> int | None:
        """That of the newest frame."""
        return None if self.newest is None else self.newest.stamp

    def advance_to(self, stamp: int) -> None:
        """Decode until a frame with at least this stamp is the newest one, or the video ends."""
        while self.newest is None or self.newest.stamp < stamp:
            if not self.advance():
                return

    def advance(self) -> bool:
        """Decode one more frame. Returns False at the end of the video."""
        following = self._peek()
        if following is not None:
            self.before, self.newest, self._following = self.newest, following, None
        return following is not None

    def _peek(self) -> Decoded | None:
        if self._following is None:
            self._following = next(self._frames, None)
        return self._following

    def after(self) -> av.VideoFrame | None:
        """Return the frame after the newest one, None at the end of the video."""
        following = self._peek()
        return None if following is None else following.frame


class Video:
    """The frames of a video in the order of presentation. `times_us` are their times from time zero."""

    def __init__(self, times_us: Times) -> None:
        self.times_us = times_us
        self._window = Window(iter(()))

    def shown(self, number: int) -> Shown | None:
        """Return frame `number`. If it cannot be decoded, return one next to it; None: no frame can be decoded."""
        target = self._stamp(number)
        self._prepare(target)
        window = self._window
        window.advance_to(target)
        if window.newest is None:
            return None
        if window.newest.stamp > target and window.before is not None:  # the target is not a frame of its own
            newest = window.newest.frame
            return Shown(self._time_us(window.before.stamp), window.before.frame, None, lambda: newest)
        before = None if window.before is None else window.before.frame
        return Shown(self._time_us(window.newest.stamp), window.newest.frame, before, window.after)

    def _stamp(self, number: int) -> int:
        raise NotImplementedError

    def _time_us(self, stamp: int) -> int:
        raise NotImplementedError

    def _prepare(self, target: int) -> None:
        """Make sure that the window has not passed the frame with the stamp `target`."""
        raise NotImplementedError


class SeekingVideo(Video):
    """A video whose packets state when each frame is shown: it is read from the keyframe before a requested frame."""

    def __init__(self, open_file: "Callable[[], File]", file: "File", index: "Index") -> None:
        times_us = TIMELINE["microseconds"](index.pts, file.time_base, file.start_us)
        is_shown = TIMELINE["is_shown"](times_us) & (index.pts >= first_decodable(open_file, index))
        super().__init__(TIMELINE["from_zero"](times_us[is_shown]))
        self._pts: Times = index.pts[is_shown]
        self._index = index
        self._open_file = open_file
        self._file = file
        self._has_keyframes = self._can_seek = bool(index.keyframe_pts)
        self._skips = True

    def shown(self, number: int) -> Shown | None:
        """Return frame `number`, without decoding frames that it does not need, unless the result then differs."""
        target = self._stamp(number)
        self._file.skip_until = target if self._skips else None
        shown = super().shown(number)
        if self._skips and (shown is None or shown.frame.pts != target or shown.frame.interlaced_frame):
            self._skips, self._file.skip_until = False, None
            self._window = Window(iter(()))
            shown = super().shown(number)
        return shown

    def _stamp(self, number: int) -> int:
        return int(self._pts[number])

    def _time_us(self, stamp: int) -> int:
        number = int(np.searchsorted(self._pts, stamp, side="right")) - 1
        return int(self.times_us[max(number, 0)])

    def _prepare(self, target: int) -> None:
        """Seek if `target` lies before the newest frame, or a keyframe lies between the two."""
        position, number = self._window.stamp, bisect_right(self._index.keyframe_pts, target) - 1
        keyframe = self._index.keyframe_pts[number] if self._can_seek and number >= 0 else None
        if position is not None and position <= target and (keyframe is None or position >= keyframe):
            return
        if keyframe is None or not self._seek(self._index.seek_to[number], target):
            self._start_again()

    def _seek(self, keyframe: int, target: int) -> bool:
        """Go to a decodable frame that is shown no later than `target`. Returns whether there is one."""
        for back_s in SEEK_BACK_S:
            if not self._file.seek(keyframe - int(back_s / self._file.time_base)):
                break
            self._window = Window(self._decode())
            self._window.advance()
            if self._window.newest is not None and self._window.newest.stamp <= target:
                return True
        self._can_seek = False
        return False

    def _start_again(self) -> None:
        self._file.container.close()
        skip_until, self._file = self._file.skip_until, self._open_file()
        self._file.skip_until = skip_until
        self._window = Window(self._decode())

    def _decode(self) -> Iterator[Decoded]:
        for frame in self._file.frames(from_keyframe=self._has_keyframes):
            if frame.pts is not None:
                yield Decoded(frame.pts, frame)


def first_decodable(open_file: "Callable[[], File]", index: "Index") -> int:
    """Return the timestamp of the first frame that a decoder returns, if frames precede the first keyframe."""
    if not index.keyframe_pts or index.pts[0] == index.keyframe_pts[0]:
        return int(index.pts[0]) if len(index.pts) else 0
    file = open_file()
    with file.container:
        stamps = (frame.pts for frame in file.frames(from_keyframe=True) if frame.pts is not None)
        return next(stamps, int(index.pts[0]))


class SequentialVideo(Video):
    """A video that is decoded from its start. A frame is identified by its number in the decoder's output."""

    def __init__(self, times_us: Times, decode: Callable[[], Iterator[av.VideoFrame]]) -> None:
        super().__init__(times_us)
        self._decode = decode
        self._start_again()

    def _stamp(self, number: int) -> int:
        return number

    def _time_us(self, stamp: int) -> int:
        return int(self.times_us[stamp])

    def _prepare(self, target: int) -> None:
        if (self._window.stamp or 0) > target:
            self._start_again()

    def _start_again(self) -> None:
        self._window = Window(Decoded(number, frame) for number, frame in enumerate(self._decode()))


def open_video(path: str, demuxer: str, codec: str) -> Video:
    """Open a video as the container and the codec that the probe found. Raises CodecRefused and av.FFmpegError."""
    if demuxer == "webp":
        times_us = TIMELINE["one_after_another"](WEBP_STRUCTURE["durations_ms"](Path(path)))
        return SequentialVideo(times_us, lambda: WEBP["frames"](path))
    file: File = STREAM["File"](path, demuxer, codec)
    index: Index = STREAM["read_index"](file, seek_by_dts=demuxer == "mpegts")
    are_stored = FORMATS["times_are_stored"](demuxer, codec) and index.is_complete
    if are_stored and not index.goes_back:
        file.expect(len(index.pts))
        return SeekingVideo(lambda: STREAM["File"](path, demuxer, codec), file, index)
    file.container.close()
    starts_with_dts = not are_stored and demuxer in FORMATS["ONLY_DECODING_TIMES"]
    return _decoded_for_times(
        path, demuxer, codec, bool(index.keyframe_pts), index.first_dts if starts_with_dts else None
    )


def _decoded_for_times(path: str, demuxer: str, codec: str, has_keyframes: bool, first: int | None) -> SequentialVideo:
    """Decode a whole video for its times. `first` is the timestamp of the first frame, if it is not the decoder's."""

    def decode() -> Iterator[av.VideoFrame]:
        file: File = STREAM["File"](path, demuxer, codec)
        with file.container:
            yield from file.frames(from_keyframe=has_keyframes)

    file: File = STREAM["File"](path, demuxer, codec)
    with file.container:
        count, stamps = TIMELINE["stamps_of_frames"](
            ((frame.pts, frame.dts) for frame in file.frames(from_keyframe=has_keyframes)),
            1 / (file.rate * file.time_base),
        )
    if not stamps:
        return SequentialVideo(TIMELINE["at_constant_rate"](count, file.rate), decode)
    times_us = TIMELINE["microseconds"](TIMELINE["first_at"](stamps, first), file.time_base, file.start_us)
    if demuxer == "gif":
        short = WEBP_STRUCTURE["SHORTEST_MS"], WEBP_STRUCTURE["REPLACEMENT_MS"]
        times_us = TIMELINE["without_short_delays"](times_us, *short)
    return SequentialVideo(TIMELINE["from_zero"](times_us), decode)
