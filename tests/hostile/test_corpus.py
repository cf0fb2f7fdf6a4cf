"""Damaged real clips, generated from a seed: each gives a documented error or frames, and leaves no process behind.

There is one case for each accepted container and codec, and 500 with `SOAK=1`.
"""

import asyncio
import os
import random
import resource
from collections import Counter
from pathlib import Path

import psutil
import pytest

from service.contract.errors import SharecapError
from service.contract.sandbox.probe import VideoLimits, probe
from service.contract.sandbox.subprocesses import ChildStarter
from tests.conftest import MakeClip
from tests.media.clips import CONTAINERS_AND_CODECS
from workers.video.frames import LIBRARIES, DecodeLimits, Part, open_frames

CASES = 500 if os.environ.get("SOAK") == "1" else len(CONTAINERS_AND_CODECS)
LIMITS = DecodeLimits(cpu_s=20, wall_s=60.0, stall_s=30.0)


def whole_clips(directory: Path) -> list[bytes]:
    """Return a clip of each accepted container and codec that this machine can make."""
    return [clip.write(directory).read_bytes() for clip in CONTAINERS_AND_CODECS if clip.is_possible]


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Return the file with random bits flipped, its start or end fuzzed, truncated, or with a piece repeated."""
    changed = bytearray(data)
    match chance.choice(("bits", "start", "end", "truncate", "repeat")):
        case "bits":
            for _ in range(chance.randint(1, 200)):
                changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        case "start" | "end" as where:
            for _ in range(chance.randint(1, 30)):
                offset = chance.randrange(min(2048, len(changed)))
                changed[offset if where == "start" else -1 - offset] = chance.randrange(256)
        case "truncate":
            del changed[chance.randrange(1, len(changed)) :]
        case "repeat":
            start = chance.randrange(len(changed))
            changed[start:start] = changed[start : start + chance.randint(1, 4096)]
    return bytes(changed)


async def outcome(path: Path, starter: ChildStarter | None = None) -> str:
    """Decode the file; return the code of its error, or `frames` if it has none."""
    try:
        info = await probe(path, VideoLimits(wall_s=60), starter)
        async with open_frames(path, info, Part(interval_s=1.0, max_samples=10), LIMITS, starter) as frames:
            async for _ in frames:
                pass
    except SharecapError as error:
        assert error.code in {"not_a_video", "unsupported_media", "video_too_large", "video_too_long", "decode_failed"}
        return error.code
    return "frames"


@pytest.mark.timeout(3600)
async def test_damaged_clips_give_documented_errors_or_frames(tmp_path: Path) -> None:
    chance, whole = random.Random(11), whole_clips(tmp_path)
    process, outcomes = psutil.Process(), Counter[str]()
    async with ChildStarter(LIBRARIES) as starter:
        for case in range(CASES):
            path = tmp_path / f"case-{case}"
            path.write_bytes(damaged(whole[case % len(whole)], chance))
            async with asyncio.timeout(200):
                outcomes[await outcome(path, starter)] += 1
            path.unlink()
    largest_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    print(f"\n{CASES} damaged clips: {dict(outcomes)}; the largest child used {largest_mb} MB")
    assert not process.children(recursive=True) or all(c.status() != psutil.STATUS_ZOMBIE for c in process.children())
    assert len(outcomes) > 1


async def test_frame_size_may_change_within_the_video(tmp_path: Path, make_clip: MakeClip) -> None:
    sizes = ((160, 120), (320, 240), (64, 64))
    parts = [make_clip(tmp_path / f"{width}.ts", 2.0, size=(width, height)) for width, height in sizes]
    path = tmp_path / "changing.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    async with asyncio.timeout(100):
        assert await outcome(path) == "frames"
