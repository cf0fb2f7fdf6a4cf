"""Hostile files sent to a whole service, gateway and worker as processes of their own: neither they nor others suffer.

What is damaged is `test_corpus`'s. `SOAK=1` asks for 500 of those.
"""

import asyncio
import ctypes
import os
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import httpx
import psutil
import pytest
from av.codec.context import Flags
from av.video.codeccontext import VideoCodecContext

from service.contract.errors import DecodeFailed, NotAVideo, UnsupportedMedia, VideoTooLarge, VideoTooLong
from service.contract.jobs import Job
from tests.conftest import MakeClip
from tests.hostile.test_corpus import KINDS, damaged
from tests.rogue import Rogue, file, rogue
from tests.soak.cluster import Cluster
from tests.soak.history import problems_of, read

DAMAGED = 500 if os.environ.get("SOAK") == "1" else 8
AT_ONCE = 4
OPTIONS = {"keyframes": "interval", "interval_s": "1", "max_keyframes": "8"}
COMPLETED = "completed"
BLAMED = {kind.code: kind for kind in (NotAVideo, UnsupportedMedia, VideoTooLarge, VideoTooLong, DecodeFailed)}
"""Errors that are a file's own fault. Any other would be the service's."""
HUGE_PX = 16_000
IN_OPEN = 0x20
GROWTH_MB = 96
"""By how much a process may outgrow what it took for its first video."""
CHILD_MB = {"probe_child.py": 512, "decode_child.py": 2048}


class Watch:
    """Sees whoever opens the file."""

    def __init__(self, path: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._fd >= 0 and libc.inotify_add_watch(self._fd, bytes(path), IN_OPEN) >= 0

    def opened(self) -> bool:
        """Whether somebody has opened it since this was asked last."""
        with suppress(BlockingIOError):
            return bool(os.read(self._fd, 1 << 16))
        return False

    def close(self) -> None:
        os.close(self._fd)


@dataclass
class Memory:
    """Peaks of resident memory in MB: of both processes after their first video and at the end, of their children."""

    pids: dict[str, int]
    children_mb: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CHILD_MB, 0))
    first_mb: dict[str, int] = field(default_factory=dict)
    at_end_mb: dict[str, int] = field(default_factory=dict)

    def now_mb(self) -> dict[str, int]:
        return {name: peak_mb(pid) for name, pid in self.pids.items()}

    async def watch(self) -> None:
        """Look at all children, again and again, until cancelled."""
        parents = [psutil.Process(pid) for pid in self.pids.values()]
        while True:
            for child in [child for parent in parents for child in parent.children()]:
                with suppress(psutil.Error, ProcessLookupError, FileNotFoundError):
                    for name in CHILD_MB.keys() & {Path(word).name for word in child.cmdline()}:
                        self.children_mb[name] = max(self.children_mb[name], peak_mb(child.pid))
            await asyncio.sleep(0.05)


def peak_mb(pid: int) -> int:
    """Return the most memory that a process has had resident; 0 of a zombie."""
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) // 1024 if found else 0


class Attacked(Cluster):
    """A service that may fetch from one test server."""

    source = ""

    @property
    def _env(self) -> dict[str, str]:
        return {**super()._env, "ALLOWED_HOSTS": self.source, "MIN_FREE_BYTES": "0"}

    async def send(self, data: bytes, name: str = "video.mp4") -> str:
        """Upload a file; return what became of it: `completed` or an error's code."""
        return await self.outcome(
            await self.http.post("/captions", data=OPTIONS, files={"file": (name, data)}), of_file=True
        )

    async def send_url(self, url: str) -> str:
        options = {**OPTIONS, "interval_s": 1, "max_keyframes": 8}
        return await self.outcome(await self.http.post("/captions", json={"url": url, **options}), of_file=False)

    async def outcome(self, answer: httpx.Response, *, of_file: bool) -> str:
        """See that the answer, and the job where one was made, are as they are documented."""
        if answer.status_code != 202:
            assert of_file, answer.text
            problem = answer.json()
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.status_code == problem["status"] == BLAMED[problem["code"]].status, problem
            return str(problem["code"])
        job_id = answer.json()["id"]
        await self.until_ended([job_id], 150)
        job = Job.model_validate((await self.http.get(f"/captions/{job_id}")).json())
        [story] = await read(self.store, {job_id: len(job.keyframes)})
        assert not problems_of(story) and story.attempts == job.attempts
        if job.error is not None:
            assert job.error.code in BLAMED or not of_file, job.error
            return job.error.code
        await self.check_completed(job)
        return job.status.value

    async def check_completed(self, job: Job) -> None:
        assert job.status == COMPLETED and job.caption and 1 <= len(job.keyframes) <= 8
        assert all(frame.time_s >= 0 for frame in job.keyframes)
        images = [await self.http.get(frame.image) for frame in job.keyframes]
        assert all(image.content.startswith(b"\xff\xd8\xff") for image in images)


@asynccontextmanager
async def attacked(directory: Path, source: Rogue) -> AsyncIterator[tuple[Attacked, Memory]]:
    """A service and what it takes; at the end both processes are the ones that they were, and nothing is left."""
    cluster = Attacked(directory, word_s=0.0, slots=AT_ONCE, lease_s=10.0)
    cluster.source = source.hosts
    async with cluster:
        await cluster.start_gateway()
        await cluster.start_workers(1)
        [worker] = cluster.workers
        memory = Memory({"gateway": cluster.gateway.pid, "worker": worker.pid or 0})
        watching = asyncio.create_task(memory.watch())
        try:
            yield cluster, memory
            assert not watching.done(), watching
        finally:
            watching.cancel()
        assert cluster.gateway.poll() is None and cluster.workers == [worker] and worker.is_alive()
        assert not list((directory / "data" / "uploads").iterdir())
        assert all(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in memory.pids.values())
        memory.at_end_mb = memory.now_mb()
        for name, mb in memory.at_end_mb.items():
            assert mb <= memory.first_mb[name] + GROWTH_MB, (name, mb, memory.first_mb)
        assert all(0 < mb <= CHILD_MB[name] for name, mb in memory.children_mb.items()), memory.children_mb


def encoder(width: int, height: int) -> VideoCodecContext:
    context = av.CodecContext.create("h264", "w")
    assert isinstance(context, VideoCodecContext)
    context.width, context.height, context.pix_fmt, context.time_base = width, height, "yuv420p", Fraction(1, 10)
    context.options = {"preset": "ultrafast", "threads": "1"}
    context.flags |= Flags.global_header
    context.open()
    return context


def write_h264(path: Path, width: int, height: int, start_s: int = 0) -> Path:
    """Write a second of frames that are of that size by their headers, and little of them: quick, however large."""
    small, told = encoder(160, 120), encoder(width, height).extradata
    assert told is not None
    blank = av.VideoFrame(160, 120, "yuv420p")
    packets = []
    for blank.pts in range(10 * start_s, 10 * start_s + 10):
        packets += small.encode(blank)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("h264", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.options = {"preset": "ultrafast", "threads": "1"}
        for packet in packets + small.encode():
            sent = av.Packet((told if packet.is_keyframe else b"") + bytes(packet))
            sent.pts, sent.dts, sent.time_base = packet.pts, packet.dts, packet.time_base
            sent.is_keyframe, sent.stream = packet.is_keyframe, stream
            out.mux(sent)
    return path


def write_ten_hours(path: Path) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 16, 16, "yuv420p", 600
        frame = av.VideoFrame(16, 16, "yuv420p")
        for frame.pts in range(36_000):
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def write_frameless(path: Path) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        out.start_encoding()
    return path


def playlists(canary: Path, url: str) -> dict[str, bytes]:
    head = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n"
    listed = [f"#EXTINF:1,\n{place}\n" for place in (canary, url)]
    return {
        "hls": f"{head}{''.join(listed)}#EXT-X-ENDLIST\n".encode(),
        "concat": f"ffconcat version 1.0\nfile {canary}\nfile {url}\n".encode(),
    }


def hostile(directory: Path, make_clip: MakeClip) -> dict[str, tuple[bytes, set[str]]]:
    """Return the known cases, and what may become of each."""
    good = make_clip(directory / "good.mp4", 1.0).read_bytes()
    small = write_h264(directory / "small.ts", 160, 120).read_bytes()
    magicyuv = make_clip(directory / "a.avi", 0.5, codec="magicyuv", pix_fmt="yuv444p").read_bytes()
    flic = (144).to_bytes(4, "little") + b"\x12\xaf\x01\x00\x40\x01\xc8\x00\x08\x00\x03\x00"
    sizes = [make_clip(directory / f"{px}.ts", 1.0, size=(px, px)).read_bytes() for px in (160, 320, 64)]
    no_video = {NotAVideo.code}
    return {
        "16000 pixels square": (write_h264(directory / "h.mp4", HUGE_PX, HUGE_PX).read_bytes(), {VideoTooLarge.code}),
        "ten hours": (write_ten_hours(directory / "long.mp4").read_bytes(), {COMPLETED}),
        "MagicYUV": (magicyuv, {UnsupportedMedia.code}),
        "FLIC": (flic.ljust(128, b"\x00") + (16).to_bytes(4, "little") + b"\xfa\xf1".ljust(12, b"\x00"), no_video),
        "truncated": (good[:-600], no_video),
        "empty": (b"", no_video),
        "sound alone": (make_clip(directory / "sound.mp4", 1.0, video=False).read_bytes(), no_video),
        "no frame": (write_frameless(directory / "none.mp4").read_bytes(), no_video),
        "changing size": (b"".join(sizes), {COMPLETED}),
        "growing huge": (
            small + write_h264(directory / "h.ts", HUGE_PX, HUGE_PX, start_s=1).read_bytes(),
            {COMPLETED, DecodeFailed.code},
        ),
    }


async def all_of(sent: Iterable[Coroutine[Any, Any, str]]) -> list[str]:
    """Return what became of each, a few at a time."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(sending: Coroutine[Any, Any, str]) -> str:
        async with room:
            return await sending

    return await asyncio.gather(*map(one, sent))


@pytest.mark.timeout(3600)
async def test_hostile_files_harm_nothing(tmp_path: Path, make_clip: MakeClip, clip: Path) -> None:
    chance = random.Random(11)
    whole = [make_clip(tmp_path / name, 2.0, codec=codec).read_bytes() for name, codec in KINDS]
    corpus = [damaged(whole[case % len(whole)], chance) for case in range(DAMAGED)]
    canary = make_clip(tmp_path / "canary.ts", 1.0)
    watch = Watch(canary)
    async with rogue() as trap, rogue() as source:
        lists = playlists(canary, trap.url("/canary.ts"))
        cases = hostile(tmp_path, make_clip) | {name: (text, {NotAVideo.code}) for name, text in lists.items()}
        async with attacked(tmp_path, source) as (service, memory):
            assert await service.send(clip.read_bytes()) == COMPLETED
            memory.first_mb = memory.now_mb()
            sent = await all_of(service.send(data, f"{name}.mp4") for name, (data, _) in cases.items())
            uploaded = dict(zip(cases, sent, strict=True))
            taken = {COMPLETED, DecodeFailed.code}
            refused = [name for name, told in uploaded.items() if told not in taken]  # workers are to see these, too
            source.answers = {f"/{place}": file(cases[name][0]) for place, name in enumerate(refused)}
            sent = await all_of(service.send_url(source.url(path)) for path in source.answers)
            fetched = dict(zip(refused, sent, strict=True))
            told = Counter(await all_of(service.send(data) for data in corpus))
            assert await service.send(clip.read_bytes()) == COMPLETED
        assert not {name: told for name, told in uploaded.items() if told not in cases[name][1]}
        assert not {name: told for name, told in fetched.items() if told not in cases[name][1]}
        assert not watch.opened() and not trap.connections
        await asyncio.to_thread(read_carelessly, tmp_path / "hostile.mp4", lists["concat"])
        assert watch.opened() and trap.connections, "both would have told"
        watch.close()
    print(f"\n{len(uploaded)} known cases uploaded, {len(fetched)} fetched; {DAMAGED} damaged clips: {dict(told)}")
    print(f"memory in MB after the first video {memory.first_mb}, at most {memory.at_end_mb}", end="")
    print(f"; the largest children {memory.children_mb}")


def read_carelessly(path: Path, playlist: bytes) -> None:
    """Open a playlist as FFmpeg does where nobody forbids it."""
    path.write_bytes(playlist)
    options = {"safe": "0", "protocol_whitelist": "file,http,tcp"}
    with suppress(av.FFmpegError), av.open(str(path), options=options) as container:
        for _ in container.demux():
            pass
