"""The error that ends a command, and what each error of the client means to somebody at a terminal."""

from sharecap_client.errors import (
    NotFound,
    RateLimited,
    ServiceUnreachable,
    SharecapError,
    Unauthorized,
    UnexpectedAnswer,
    UnsupportedMedia,
)

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


def describe(error: SharecapError) -> str:
    """Return one line: what is wrong, and what to do next."""
    advice = ADVICE.get(type(error), "")
    if isinstance(error, RateLimited) and error.retry_after_s:
        advice = f"Try again in {error.retry_after_s:g} s."
    text = " ".join(str(error).split())
    return f"{text}{'' if text.endswith(('.', ')')) else '.'} {advice}" if advice else text
