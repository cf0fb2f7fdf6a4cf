"""When each frame is shown, in whole microseconds from time zero. The decode child loads this file by its path.

Time zero is the container's start time: the earliest start of its streams, as in `ffmpeg -ss` and mpv. Times are
rounded down, so that a cut at a reported time never misses the frame shown then.
"""

from array import array
from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise

import numpy as np
import numpy.typing as npt

MICROSECONDS = 1_000_000
Times = npt.NDArray[np.int64]
Stamp = int | None
"""A timestamp in units of the stream's time base, if it is known."""


def sorted_unique(stamps: "array[int]") -> Times:
    """Return the sorted values without duplicates. `np.unique` would need eight times the memory."""
    times = np.sort(np.frombuffer(stamps, np.int64) if stamps else np.zeros(0, np.int64))
    is_first = np.ones(len(times), bool)
    is_first[1:] = times[1:] != times[:-1]
    unique: Times = times[is_first]
    return unique


def microseconds(stamps: Times, time_base: Fraction, start_us: int | None) -> Times:
    """Return the times of timestamps in units of `time_base`, rounded down.

    `start_us` is the container's start. If it states none, as an MPEG-PS with a single frame, the first time is 0.
    """
    whole, rest = np.divmod(stamps, time_base.denominator)
    scale = time_base.numerator * MICROSECONDS
    times_us: Times = whole * scale + rest * scale // time_base.denominator
    return times_us - (times_us[:1] if start_us is None else start_us)


def is_shown(times_us: Times) -> npt.NDArray[np.bool_]:
    """Return which frames are shown: those from time zero on, or all if the container states too late a start."""
    shown = times_us >= -1  # the container's start is rounded to a microsecond
    return shown if shown.any() else np.ones(len(times_us), bool)


def from_zero(times_us: Times) -> Times:
    """Return the times of shown frames, none of which is negative."""
    if len(times_us) and times_us[0] < -1:
        return times_us - np.int64(times_us[0])
    return np.maximum(times_us, 0)


def stamps_of_frames(frames: Iterable[tuple[Stamp, Stamp]], step: Fraction) -> "tuple[int, array[int]]":
    """Return how many frames there are, and a rising timestamp for each; no timestamps if the frames have none.

    `frames` are their (pts, dts) in the order in which a decoder returns them; `step` is the usual time between two. A
    frame without a pts was shown at the dts of the packet that released it. If the pts do not rise, as for H.264 in
    AVI, all frames get their dts. If those do not rise either, as in an MPEG program stream that states the time of
    some frames only, a frame that is too early is moved to one step after the frame before.
    """
    pairs = list(frames)
    for stamps in ([dts if pts is None else pts for pts, dts in pairs], [dts for _, dts in pairs]):
        known = [stamp for stamp in stamps if stamp is not None]
        if known and stamps[0] is not None and all(earlier < later for earlier, later in pairwise(known)):
            return len(pairs), _rising(stamps, step)
    return len(pairs), _rising([dts if pts is None else pts for pts, dts in pairs], step)


def _rising(stamps: list[Stamp], step: Fraction) -> "array[int]":
    """Return the timestamps, with a missing one, or one that does not rise, replaced by the one before plus `step`."""
    rising = array("q")
    exact, is_estimate = Fraction(next((stamp for stamp in stamps if stamp is not None), 0)), False
    for number, stamp in enumerate(stamps):
        expected = exact + step if number else exact
        earliest = expected - step / 2 if is_estimate else exact + Fraction(1, 2)
        is_estimate = stamp is None or (number > 0 and stamp < earliest)
        exact = expected if is_estimate or stamp is None else Fraction(stamp)
        rising.append(max(round(exact), rising[-1] + 1) if rising else round(exact))
    return rising if any(stamp is not None for stamp in stamps) else array("q")


def first_at(stamps: "array[int]", first: Stamp) -> "array[int]":
    """Return the timestamps shifted so that the first one is `first`."""
    if first is None or not stamps:
        return stamps
    shift = first - stamps[0]
    return array("q", (stamp + shift for stamp in stamps))


def without_short_delays(times_us: Times, shortest_ms: int, replacement_ms: int) -> Times:
    """Return the times with each delay of up to `shortest_ms` replaced."""
    delays_us = np.diff(times_us)
    delays_us[delays_us <= shortest_ms * 1000] = replacement_ms * 1000
    return np.concatenate([times_us[:1], times_us[:1] + np.cumsum(delays_us)])


def at_constant_rate(count: int, rate: Fraction) -> Times:
    """Return the times of `count` frames in a file that stores no times."""
    return np.arange(count, dtype=np.int64) * (MICROSECONDS * rate.denominator) // rate.numerator


def one_after_another(durations_ms: Iterable[int]) -> Times:
    """Return the times of frames that are each shown for a number of milliseconds."""
    ends = np.cumsum(np.fromiter(durations_ms, np.int64)) * 1000
    return np.concatenate([np.zeros(1, np.int64), ends[:-1]]) if len(ends) else ends
