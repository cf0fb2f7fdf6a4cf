"""The structure of animated WebP files. FFmpeg decodes still WebP only, so probe and decode child read this one here.

The child processes load this file by its path. It imports nothing from this package.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

HEAD_BYTES = 30
ANIMATION_FLAG = 0x02
SHORTEST_MS, REPLACEMENT_MS = 10, 100
"""Browsers show a frame with a duration of up to 10 ms for 100 ms."""
DURATION = slice(12, 15)
"""Where an ANMF chunk states for how long its frame is shown, in milliseconds."""


def is_webp(head: bytes) -> bool:
    """Return whether a file that starts with `head` is WebP, still or animated."""
    return head.startswith(b"RIFF") and head[8:12] == b"WEBP"


def is_animated(head: bytes) -> bool:
    """Return whether a file that starts with `head` is animated WebP."""
    return is_webp(head) and head[12:16] == b"VP8X" and len(head) >= HEAD_BYTES and bool(head[20] & ANIMATION_FLAG)


def canvas_size(head: bytes) -> tuple[int, int]:
    """Return the width and height of an animated WebP."""
    return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")


def durations_ms(path: Path) -> Iterator[int]:
    """Yield for how long each frame of an animated WebP is shown."""
    with path.open("rb") as file:
        file.seek(12)
        while len(header := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", header)
            content = file.read(min(size, DURATION.stop))
            if name == b"ANMF" and len(content) == DURATION.stop:
                stated = int.from_bytes(content[DURATION], "little")
                yield stated if stated > SHORTEST_MS else REPLACEMENT_MS
            file.seek(size + size % 2 - len(content), 1)
