"""Chooses which frames of a video to sample, given the times of all frames. `decode_child.py` loads it by its path."""

import numpy as np
import numpy.typing as npt

TIME_ERROR_S = 1e-3
"""A frame that starts up to this much after a sampling time counts as on screen, because containers round times."""


def plan_samples(
    seconds: npt.NDArray[np.float64],
    interval_s: float,
    max_samples: int,
    start_s: float | None = None,
    end_s: float | None = None,
) -> tuple[list[int], float]:
    """Return the numbers of the frames to sample and the sampling interval used; `seconds` are the times of all frames.

    One sample every `interval_s` from the first frame of the part `start_s` to `end_s`: the frame on screen then. The
    part's last frame is always a sample. The interval is increased if there would be more than `max_samples` frames.
    The list is empty if the part starts after the end of the video.
    """
    start_s, end_s = start_s or 0.0, np.inf if end_s is None else end_s
    inside = np.flatnonzero((seconds >= start_s - TIME_ERROR_S) & (seconds <= end_s + TIME_ERROR_S))
    if not inside.size:  # the part lies between two frames: use the one on screen
        on_screen = int(np.searchsorted(seconds, start_s, side="right")) - 1
        return ([on_screen] if 0 <= on_screen < len(seconds) - 1 else []), interval_s
    first, last = int(inside[0]), int(inside[-1])
    if max_samples == 1:
        return [first], interval_s
    span_s = seconds[last] - seconds[first]
    if np.floor((span_s - TIME_ERROR_S) / interval_s) + 2 > max_samples:
        interval_s = float(span_s / (max_samples - 1))
    steps = max(0, int(np.ceil((span_s - TIME_ERROR_S) / interval_s)))
    times = seconds[first] + interval_s * np.arange(steps)
    on_screen_at = np.searchsorted(seconds, times + TIME_ERROR_S, side="right") - 1
    numbers = np.unique(np.concatenate([np.clip(on_screen_at, first, last), [last]]))
    return [int(number) for number in numbers], interval_s
