"""The video stream of an open file: packets, frames and seeking. The decode child loads this file by its path."""

import runpy
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.subtitles.codeccontext
import av.subtitles.stream
import numpy as np
import numpy.typing as npt
from av.video.stream import VideoStream

SANDBOX = Path(__file__).resolve().parents[3] / "service/contract/sandbox"
FORMATS = runpy.run_path(str(SANDBOX / "formats.py"))
TIMELINE = runpy.run_path(str(Path(__file__).with_name("timeline.py")))
SKIPS_UNREFERENCED = frozenset({"h264", "mpeg4", "mpeg1video", "mpeg2video"})
"""Codecs in which FFmpeg recognises exactly which frames no other frame refers to."""
THREADED = frozenset({"h264", "hevc", "vp9"})
MANY_FRAMES, THREADS = 250, 2
"""A video of so many frames is decoded by several threads. A shorter one is decoded before they pay."""
MAX_DECODE_ERRORS = 100
"""So many packets in a row may be damaged."""
DEFAULT_RATE = Fraction(25)
GIF_TRAILER = b";"
"""The end of a GIF. Before it, the data of a frame end with an empty block, which is a zero."""
Times = npt.NDArray[np.int64]


class CodecRefused(Exception):
    """The video's codec is not the one that the probe found."""


class File:
    """The video stream of an open file. FFmpeg may use only the container and the codec that the probe found."""

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
        self.skip_until: int | None = None
        """Frames before this timestamp are not decoded if no other frame refers to them. They are not returned."""
        self._codec = codec
        self._keeps_damaged = demuxer in FORMATS["BROADCAST"]
        self._is_gif = demuxer == "gif"
        self.start_us: int | None = self.container.start_time
        rate = FORMATS["frame_rate"](self.stream.guessed_rate, self.stream.average_rate)
        self.rate: Fraction = rate or DEFAULT_RATE

    def expect(self, frames: int) -> None:
        """Prepare for a video of so many frames, before the first one is decoded."""
        if frames >= MANY_FRAMES and self._codec in THREADED:
            self.stream.thread_count, self.stream.thread_type = THREADS, "FRAME"

    def packets(self) -> Iterator["av.Packet[VideoStream]"]:
        """Yield the packets from here on; the last one is empty. Damaged ones are skipped."""
        packets, errors = self.container.demux(self.stream), 0
        while errors < MAX_DECODE_ERRORS:
            try:
                packet = next(packets, None)
            except av.FFmpegError:
                packets, errors = self.container.demux(self.stream), errors + 1
                continue
            except IndexError:  # PyAV, at the end of a file in which a stream has appeared late
                return
            if packet is None:
                return
            errors = 0
            if self._keeps_damaged or not self._is_damaged(packet):
                yield packet

    def _is_damaged(self, packet: "av.Packet[VideoStream]") -> bool:
        is_cut = self._is_gif and packet.size > 0 and not bytes(packet).rstrip(GIF_TRAILER).endswith(b"\0")
        return packet.is_corrupt or is_cut

    def frames(self, from_keyframe: bool) -> Iterator[av.VideoFrame]:
        """Decode from here on, in the order of presentation; with `from_keyframe`, from the next keyframe on.

        A damaged frame at the end is left out: the end of the file is missing.
        """
        latest: av.VideoFrame | None = None
        for frame in self._all_frames(from_keyframe):
            if latest is not None:
                yield latest
            latest = frame if frame.is_corrupt and not self._keeps_damaged else None
            if latest is None:
                yield frame

    def _all_frames(self, from_keyframe: bool) -> Iterator[av.VideoFrame]:
        waits, errors = from_keyframe, 0
        for packet in self.packets():
            waits = waits and bool(packet.size) and not packet.is_keyframe
            self._choose_skipping(packet)
            try:
                frames = [] if waits else packet.decode()
            except av.FFmpegError:
                frames, errors = [], errors + 1
            if errors == MAX_DECODE_ERRORS:
                return
            errors = 0 if frames else errors
            yield from frames

    def _choose_skipping(self, packet: "av.Packet[VideoStream]") -> None:
        if self._codec in SKIPS_UNREFERENCED:
            skips = self.skip_until is not None and packet.pts is not None and packet.pts < self.skip_until
            self.stream.codec_context.skip_frame = "NONREF" if skips else "DEFAULT"

    def seek(self, stamp: int) -> bool:
        """Go to the last place before `stamp` at which the file can be read. Returns whether there is one."""
        try:
            self.container.seek(stamp, stream=self.stream)
        except av.FFmpegError:
            return False
        return True


@dataclass(frozen=True)
class Index:
    """The frames of a video in the order of presentation, as its packets list them, in timestamps of the stream."""

    pts: Times
    keyframe_pts: list[int]
    """Frames at which decoding can start."""
    seek_to: list[int]
    """Where to seek for each of them."""
    first_dts: int | None
    is_complete: bool
    """Whether every packet states when its frame is shown."""
    goes_back: bool
    """Whether the clock goes back within the file, as in several recordings joined to one."""


def read_index(file: File, seek_by_dts: bool) -> Index:
    """Read all packets without decoding them."""
    pts, keyframes, first_dts, is_complete = array("q"), dict[int, int](), None, True
    latest_dts, goes_back = None, False
    for packet in file.packets():
        if not packet.size:
            continue
        first_dts = packet.dts if first_dts is None else first_dts
        if packet.dts is not None:
            goes_back = goes_back or (latest_dts is not None and packet.dts < latest_dts)
            latest_dts = packet.dts
        if packet.pts is None:
            is_complete = False
        elif not packet.is_discard:
            pts.append(packet.pts)
            if packet.is_keyframe:
                seek_to = packet.dts if seek_by_dts else packet.pts
                keyframes.setdefault(packet.pts, packet.pts if seek_to is None else seek_to)
    keyframe_pts = sorted(keyframes)
    positions = [keyframes[stamp] for stamp in keyframe_pts]
    return Index(TIMELINE["sorted_unique"](pts), keyframe_pts, positions, first_dts, is_complete, goes_back)
