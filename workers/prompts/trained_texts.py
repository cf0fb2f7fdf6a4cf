"""The trained prompts of ShareCaptioner-Video: protocol constants, misspellings included.

The published checkpoint was fine-tuned on exactly these sentences (reference batch scripts of the
ShareGPT4Video release), so one letter changed is a prompt it never saw. Times are in seconds.
"""

from collections.abc import Iterable

FIRST_FRAME = "This is the first frame of a video, describe it in detail."
FAST = "Here are a few key frames of a video, discribe this video in detail."


def differential(frame: int, previous_s: float, time_s: float, previous_text: str) -> str:
    """Ask what changed between keyframe `frame` (counted from 0) and the next one."""
    return (
        f"Here are the Video frame {frame} at {previous_s:.2f} Second(s) and Video frame {frame + 1} "
        f"at {time_s:.2f} Second(s) of a video, describe what happend between them. "
        f"What happend before is: {previous_text}"
    )


def summary(descriptions: Iterable[tuple[float, str]]) -> str:
    """Ask for one caption of `(time_s, text)` descriptions, numbered from 1 in the given order."""
    lines = (description(k, time_s, text) for k, (time_s, text) in enumerate(descriptions, start=1))
    return "Summarize the following per frame descriptions:\n" + "".join(lines)


def description(number: int, time_s: float, text: str) -> str:
    """Return one line of `summary`."""
    return f"Video frame {number} at {time_s:.2f} Second(s) description: {text}\n"


def recaption(prompt: str) -> str:
    """Ask for the dense caption of a short text-to-video prompt."""
    return f"Translate this brief generation prompt into a detailed caption: {prompt}"
