"""Hostile files sent to a whole service with the gateway and the worker as separate processes: both stay healthy.

The damaged clips are those of `test_corpus`; `SOAK=1` sends 500 of them.
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
from service.presentation import Job
from tests.conftest import MakeClip
from tests.hostile.test_corpus import damaged, whole_clips
from tests.hostile_server import HostileServer, file, hostile_server
from tests.soak.cluster import Cluster
from tests.soak.history import problems_of, read_histories

DAMAGED = 500 if os.environ.get("SOAK") == "1" else 8
PARALLEL = 4
OPTIONS = {"keyframes": "interval", "interval_s": "1", "max_keyframes": "8"}
COMPLETED = "completed"
FILE_ERRORS = {kind.code: kind for kind in (NotAVideo, UnsupportedMedia, VideoTooLarge, VideoTooLong, DecodeFailed)}
"""Errors that a file may cause. Any other error is a fault of the service."""
HUGE_PX = 16_000
IN_OPEN = 0x20
GROWTH_MB = 96
"""How much a process's memory may grow after its first video."""
CHILD_MB = {"probe_child.py": 512, "decode_child.py": 2048}


class Watch:
    """Detects with inotify that any process opens a file."""

    def __init__(self, path: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._fd >= 0 and libc.inotify_add_watch(self._fd, bytes(path), IN_OPEN) >= 0

    def opened(self) -> bool:
        """Whether the file was opened since the last call."""
        with suppress(BlockingIOError):
            return bool(os.read(self._fd, 1 << 16))
        return False

    def close(self) -> None:
        os.close(self._fd)


@dataclass
class Memory:
    """Peak resident memory in MB: of the gateway and the worker after their first video and at the end, and of their
    children by script name."""

    pids: dict[str, int]
    children_mb: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CHILD_MB, 0))
    first_mb: dict[str, int] = field(default_factory=dict)
    at_end_mb: dict[str, int] = field(default_factory=dict)

    def now_mb(self) -> dict[str, int]:
        return {name: peak_mb(pid) for name, pid in self.pids.items()}

    async def watch(self) -> None:
        """Poll the memory of all child processes until cancelled."""
        parents = [psutil.Process(pid) for pid in self.pids.values()]
        while True:
            for child in [child for parent in parents for child in parent.children(recursive=True)]:
                with suppress(psutil.Error, ProcessLookupError, FileNotFoundError):
                    if (name := child.name()) in CHILD_MB:
                        self.children_mb[name] = max(self.children_mb[name], peak_mb(child.pid))
            await asyncio.sleep(0.05)


def peak_mb(pid: int) -> int:
    """Return the peak resident memory of a process in MB; 0 for a zombie."""
    peak_kb = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(peak_kb[1]) // 1024 if peak_kb else 0


class AttackedService(Cluster):
    """A service that is allowed to fetch from one test server."""

    source = ""

    @property
    def _env(self) -> dict[str, str]:
        return {**super()._env, "ALLOWED_HOSTS": self.source, "MIN_FREE_BYTES": "0"}

    async def send(self, data: bytes, name: str = "video.mp4") -> str:
        """Upload a file; return its outcome: `completed` or the code of an error."""
        return await self.outcome(
            await self.http.post("/captions", data=OPTIONS, files={"file": (name, data)}), of_file=True
        )

    async def send_url(self, url: str) -> str:
        options = {**OPTIONS, "interval_s": 1, "max_keyframes": 8}
        return await self.outcome(await self.http.post("/captions", json={"url": url, **options}), of_file=False)

    async def outcome(self, answer: httpx.Response, *, of_file: bool) -> str:
        """Check that the response, and the job if one was created, are as documented; return the outcome."""
        if answer.status_code != 202:
            assert of_file, answer.text
            problem = answer.json()
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.status_code == problem["status"] == FILE_ERRORS[problem["code"]].status, problem
            return str(problem["code"])
        job_id = answer.json()["id"]
        await self.until_ended([job_id], 150)
        job = Job.model_validate((await self.http.get(f"/captions/{job_id}")).json())
        [history] = await read_histories(self.store, {job_id: len(job.keyframes)})
        assert not problems_of(history) and history.attempts == job.attempts
        if job.error is not None:
            assert job.error.code in FILE_ERRORS or not of_file, job.error
            return job.error.code
        await self.check_completed(job)
        return job.status.value

    async def check_completed(self, job: Job) -> None:
        assert job.status == COMPLETED and job.caption and 1 <= len(job.keyframes) <= 8
        assert all(frame.time_s >= 0 for frame in job.keyframes)
        images = [await self.http.get(frame.image) for frame in job.keyframes]
        assert all(image.content.startswith(b"\xff\xd8\xff") for image in images)


@asynccontextmanager
async def attacked(directory: Path, source: HostileServer) -> AsyncIterator[tuple[AttackedService, Memory]]:
    """Run a service and measure its memory. Afterwards check that both processes survived within their memory limits
    and that no upload is left."""
    cluster = AttackedService(directory, word_s=0.0, slots=PARALLEL, lease_s=10.0)
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
    """Write one second of small frames whose headers claim the size `width` x `height`; fast for any size."""
    small, claimed_header = encoder(160, 120), encoder(width, height).extradata
    assert claimed_header is not None
    blank = av.VideoFrame(160, 120, "yuv420p")
    packets = []
    for blank.pts in range(10 * start_s, 10 * start_s + 10):
        packets += small.encode(blank)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("h264", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.options = {"preset": "ultrafast", "threads": "1"}
        for packet in packets + small.encode():
            sent = av.Packet((claimed_header if packet.is_keyframe else b"") + bytes(packet))
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
    """Return playlists that refer to a local file and to a URL."""
    head = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n"
    entries = [f"#EXTINF:1,\n{entry}\n" for entry in (canary, url)]
    return {
        "hls": f"{head}{''.join(entries)}#EXT-X-ENDLIST\n".encode(),
        "concat": f"ffconcat version 1.0\nfile {canary}\nfile {url}\n".encode(),
    }


def known_cases(directory: Path, make_clip: MakeClip) -> dict[str, tuple[bytes, set[str]]]:
    """Return the content of each known hostile file, and its allowed outcomes."""
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
        "audio only": (make_clip(directory / "sound.mp4", 1.0, video=False).read_bytes(), no_video),
        "no frame": (write_frameless(directory / "none.mp4").read_bytes(), no_video),
        "changing size": (b"".join(sizes), {COMPLETED}),
        "growing huge": (
            small + write_h264(directory / "h.ts", HUGE_PX, HUGE_PX, start_s=1).read_bytes(),
            {COMPLETED, DecodeFailed.code},
        ),
    }


async def outcomes_of(requests: Iterable[Coroutine[Any, Any, str]]) -> list[str]:
    """Run the requests, `PARALLEL` at a time; return their outcomes."""
    limit = asyncio.Semaphore(PARALLEL)

    async def limited(request: Coroutine[Any, Any, str]) -> str:
        async with limit:
            return await request

    return await asyncio.gather(*map(limited, requests))


@pytest.mark.timeout(3600)
async def test_hostile_files_do_not_affect_the_service(tmp_path: Path, make_clip: MakeClip, clip: Path) -> None:
    chance, whole = random.Random(11), whole_clips(tmp_path)
    corpus = [damaged(chance.choice(whole), chance) for _ in range(DAMAGED)]
    canary = make_clip(tmp_path / "canary.ts", 1.0)
    watch = Watch(canary)
    async with hostile_server() as trap, hostile_server() as source:
        lists = playlists(canary, trap.url("/canary.ts"))
        cases = known_cases(tmp_path, make_clip) | {name: (text, {NotAVideo.code}) for name, text in lists.items()}
        async with attacked(tmp_path, source) as (service, memory):
            assert await service.send(clip.read_bytes()) == COMPLETED
            memory.first_mb = memory.now_mb()
            outcomes = await outcomes_of(service.send(data, f"{name}.mp4") for name, (data, _) in cases.items())
            uploaded = dict(zip(cases, outcomes, strict=True))
            accepted = {COMPLETED, DecodeFailed.code}
            # the gateway refused these uploads; fetched from a URL, they reach the worker
            refused = [name for name, outcome in uploaded.items() if outcome not in accepted]
            source.answers = {f"/{index}": file(cases[name][0]) for index, name in enumerate(refused)}
            outcomes = await outcomes_of(service.send_url(source.url(path)) for path in source.answers)
            fetched = dict(zip(refused, outcomes, strict=True))
            damaged_outcomes = Counter(await outcomes_of(service.send(data) for data in corpus))
            assert await service.send(clip.read_bytes()) == COMPLETED
        assert not {name: outcome for name, outcome in uploaded.items() if outcome not in cases[name][1]}
        assert not {name: outcome for name, outcome in fetched.items() if outcome not in cases[name][1]}
        assert not watch.opened() and not trap.connections
        await asyncio.to_thread(read_unprotected, tmp_path / "hostile.mp4", lists["concat"])
        assert watch.opened() and trap.connections, "the canaries must detect an unprotected read"
        watch.close()
    print(f"\n{len(uploaded)} known cases uploaded, {len(fetched)} fetched;", end=" ")
    print(f"{DAMAGED} damaged clips: {dict(damaged_outcomes)}")
    print(f"peak memory in MB after the first video {memory.first_mb}, at the end {memory.at_end_mb}", end="")
    print(f"; largest children {memory.children_mb}")


def read_unprotected(path: Path, playlist: bytes) -> None:
    """Open a playlist as FFmpeg does without protocol restrictions."""
    path.write_bytes(playlist)
    options = {"safe": "0", "protocol_whitelist": "file,http,tcp"}
    with suppress(av.FFmpegError), av.open(str(path), options=options) as container:
        for _ in container.demux():
            pass
