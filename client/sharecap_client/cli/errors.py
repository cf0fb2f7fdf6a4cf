"""The error that ends a command, and what each error of the client means to somebody at a terminal."""

import re
from collections.abc import Iterable

from sharecap_client.errors import (
    ApiError,
    InvalidOption,
    NotFound,
    RateLimited,
    ServiceUnreachable,
    SharecapError,
    Unauthorized,
    UnexpectedAnswer,
    UnsupportedMedia,
)
from sharecap_client.options import VideoOptions

ADVICE: dict[type[SharecapError], str] = {
    ServiceUnreachable: "Start a service with `sharecap up`, or select another one with --url or SHARECAP_URL.",
    UnexpectedAnswer: "Check --url or SHARECAP_URL.",
    Unauthorized: "Give a key with --api-key or SHARECAP_API_KEY; on the service's machine, "
    "`sharecap keys add NAME --data-dir DIR` creates one.",
    NotFound: "`sharecap jobs` lists your jobs.",
    UnsupportedMedia: "`ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4` converts a video.",
}


class CommandFailed(Exception):
    """Ends the command with exit status 1 and this text on standard error. The text says what to do next."""


def flag_of(option: str) -> str:
    """Return the flag for an option of the API: `--interval` for `interval_s`."""
    return "--" + option.removesuffix("_s").replace("_", "-")


def with_flags(detail: str, code: str) -> str:
    """Return the detail of an error; if it is about an option, with the names of flags instead of options.

    The service writes `interval_s: …`. A name that is also a word is replaced only there, not within a sentence.
    """
    return _OPTION.sub(lambda match: flag_of(match[0]), detail) if code == InvalidOption.CODE else detail


def _names(options: Iterable[str]) -> str:
    return "|".join(sorted(options, key=len, reverse=True))


_OPTIONS = VideoOptions.__annotations__
_OPTION = re.compile(
    rf"(?:^|(?<=; )|(?<=did you mean ))(?:{_names(_OPTIONS)})(?=[:.?])"
    rf"|(?<![\w.-])(?:{_names(name for name in _OPTIONS if '_' in name)})(?!\w)"
)


def describe(error: SharecapError) -> str:
    """Return one line: what is wrong, and what to do next."""
    advice = ADVICE.get(type(error), "")
    if isinstance(error, RateLimited) and error.retry_after_s:
        advice = f"Try again in {error.retry_after_s:g} s."
    code = error.code if isinstance(error, ApiError) else ""
    text = " ".join(with_flags(str(error), code).split())
    return f"{text}{'' if text.endswith(('.', ')')) else '.'} {advice}" if advice else text
