"""Damaged real clips, seeded: each ends in a documented error or in frames, and nothing else is touched or held up.

`SOAK=1` asks for 500 of them.
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
from service.contract.sandbox.probe import Limits, probe
from tests.conftest import MakeClip
from workers.video.frames import DecodeLimits, Part, open_frames

CASES = 500 if os.environ.get("SOAK") == "1" else 24
KINDS = (
    ("a.mp4", "h264"),
    ("a.mov", "hevc"),
    ("a.mkv", "h264"),
    ("a.webm", "libvpx-vp9"),
    ("a.avi", "mpeg4"),
    ("a.ts", "h264"),
)
LIMITS = DecodeLimits(cpu_s=20, wall_s=60.0, stall_s=30.0)


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Return the file with bits flipped anywhere, its start or end fuzzed, cut short, or a piece said twice."""
    changed = bytearray(data)
    match chance.choice(("bits", "start", "end", "cut", "twice")):
        case "bits":
            for _ in range(chance.randint(1, 200)):
                changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        case "start" | "end" as where:
            for _ in range(chance.randint(1, 30)):
                place = chance.randrange(min(2048, len(changed)))
                changed[place if where == "start" else -1 - place] = chance.randrange(256)
        case "cut":
            del changed[chance.randrange(1, len(changed)) :]
        case "twice":
            start = chance.randrange(len(changed))
            changed[start:start] = changed[start : start + chance.randint(1, 4096)]
    return bytes(changed)


async def outcome(path: Path) -> str:
    """Return what becomes of the file: the code of its error, or `frames`."""
    try:
        info = await probe(path, Limits(wall_s=60))
        async with open_frames(path, info, Part(interval_s=1.0, max_samples=10), LIMITS) as frames:
            async for _ in frames:
                pass
    except SharecapError as error:
        assert error.code in {"not_a_video", "unsupported_media", "video_too_large", "video_too_long", "decode_failed"}
        return error.code
    return "frames"


@pytest.mark.timeout(3600)
async def test_damaged_clips_harm_nothing(tmp_path: Path, make_clip: MakeClip) -> None:
    chance = random.Random(11)
    whole = [make_clip(tmp_path / name, 2.0, codec=codec).read_bytes() for name, codec in KINDS]
    here, told = psutil.Process(), Counter[str]()
    for case in range(CASES):
        path = tmp_path / f"case-{case}"
        path.write_bytes(damaged(whole[case % len(whole)], chance))
        async with asyncio.timeout(200):
            told[await outcome(path)] += 1
        path.unlink()
    largest_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    print(f"\n{CASES} damaged clips: {dict(told)}; the largest child took {largest_mb} MB")
    assert not here.children(recursive=True) or all(c.status() != psutil.STATUS_ZOMBIE for c in here.children())
    assert len(told) > 1


async def test_a_size_that_changes_on_the_way(tmp_path: Path, make_clip: MakeClip) -> None:
    sizes = ((160, 120), (320, 240), (64, 64))
    parts = [make_clip(tmp_path / f"{width}.ts", 2.0, size=(width, height)) for width, height in sizes]
    path = tmp_path / "changing.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    async with asyncio.timeout(100):
        assert await outcome(path) == "frames"
