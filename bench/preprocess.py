"""Turns per second and core from decoded frames to the engine's input, for the published shapes of images and crops.

    python bench/preprocess.py
    python bench/preprocess.py --compare ../old-checkout      the same with another checkout, alternating
    python bench/preprocess.py --smoke                        a quick check

A turn stacks two frames and is rendered by vLLM's front-end: prompt, resize, tiles. No model is loaded. The figure is
turns per second of CPU time, the median of all runs. Each run is a process of its own.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for this folder; the measured checkout comes first

from bench.published import write_checkpoint

ROOT = Path(__file__).resolve().parents[1]
TARGET_TURNS_PER_S = 60
RUNS = 3


@dataclass(frozen=True)
class Shape:
    """One kind of turn: two frames of this size, and the crop budget."""

    name: str
    width: int
    height: int
    hd_num: int


SHAPES = (
    Shape("pair of 640 x 360", 640, 360, 9),
    Shape("pair of 1024 x 576", 1024, 576, 9),
    Shape("pair of 1024 x 576", 1024, 576, 16),
    Shape("pair of 720p", 1280, 720, 9),
    Shape("pair of 720p", 1280, 720, 16),
    Shape("pair of 1080p", 1920, 1080, 9),
    Shape("pair of 1080p", 1920, 1080, 16),
)


@dataclass
class Row:
    """The result of one shape. `mb_per_turn`: bytes of the image that are sent to the engine, in 10^6."""

    turns_per_core_s: float
    mb_per_turn: float


def turn_renderer(directory: Path) -> Any:
    """Return the renderer of a checkpoint with the published shapes, as a worker builds it."""
    from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: PLC0415
    from vllm.renderers.registry import renderer_from_config  # noqa: PLC0415

    from workers.models.xcomposer2_turns import XComposer2TurnRenderer  # noqa: PLC0415
    from workers.xcomposer2.plugin import check_registered, engine_args  # noqa: PLC0415

    check_registered()
    model = write_checkpoint(directory)
    config = AsyncEngineArgs(**engine_args(model, dtype="bfloat16", max_model_len=8192)).create_engine_config()
    return XComposer2TurnRenderer(renderer_from_config(config), config.model_config)


async def measure(renderer: Any, shape: Shape, turns: int) -> Row:
    """Render `turns` turns, after one that is not measured."""
    import numpy as np  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415

    from workers.models.engine import Turn  # noqa: PLC0415
    from workers.video.collage import stack_pair  # noqa: PLC0415

    noise = np.random.default_rng(1).integers(0, 256, (turns + 2, shape.height // 8, shape.width // 8, 3), np.uint8)
    frames = [Image.fromarray(blocks).resize((shape.width, shape.height)) for blocks in noise]
    start = mb = 0.0
    for number, pair in enumerate(pairwise(frames)):
        turn = Turn("What changes between these frames?", (stack_pair(*pair),), hd_num=shape.hd_num)
        rendered = await renderer.render(turn)
        if number == 0:
            mb = rendered["mm_kwargs"]["image"][0].get_data()["pixel_values"].nbytes / 1e6
            start = time.process_time()
    return Row(turns / (time.process_time() - start), mb)


def run_once(turns: int) -> None:
    """Measure every shape in this process and print the rows as JSON."""
    with tempfile.TemporaryDirectory() as directory:
        renderer = turn_renderer(Path(directory))
        rows = [asyncio.run(measure(renderer, shape, turns)) for shape in SHAPES]
    print(json.dumps([asdict(row) for row in rows]))


def run_in(checkout: Path, turns: int) -> list[Row]:
    """Measure every shape with the code of a checkout, in a process of its own."""
    run = subprocess.run(
        [sys.executable, __file__, "--once", str(turns)],
        env={**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR"},
        cwd=checkout,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [Row(**row) for row in json.loads(run.stdout.splitlines()[-1])]


def medians(runs: list[list[Row]]) -> list[Row]:
    """Return the median of each shape."""
    shapes = zip(*runs, strict=True)
    return [Row(statistics.median(row.turns_per_core_s for row in rows), rows[0].mb_per_turn) for rows in shapes]


def table(results: dict[str, list[Row]]) -> str:
    """Return a Markdown table with two columns for each checkout."""
    names = "".join(f" {name}: turns/s per core | MB per turn |" for name in results)
    lines = [f"| image | `hd_num` |{names}", "|---|---:|" + "---:|---:|" * len(results)]
    for number, shape in enumerate(SHAPES):
        rows = [result[number] for result in results.values()]
        cells = "".join(f" {row.turns_per_core_s:.0f} | {row.mb_per_turn:.1f} |" for row in rows)
        lines.append(f"| {shape.name} | {shape.hd_num} |{cells}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", type=Path, help="another checkout to measure in the same run")
    parser.add_argument("--turns", type=int, default=20, help="turns of each shape in a run")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--smoke", action="store_true", help="one run of two turns")
    parser.add_argument("--once", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        run_once(options.once)
        return
    checkouts = {"this": ROOT} | ({"other": options.compare.resolve()} if options.compare else {})
    turns, runs = (2, 1) if options.smoke else (options.turns, RUNS)
    measured: dict[str, list[list[Row]]] = {name: [] for name in checkouts}
    for _ in range(runs):
        for name, checkout in checkouts.items():
            measured[name].append(run_in(checkout, turns))
    results = {name: medians(rows) for name, rows in measured.items()}
    load = os.getloadavg()[0]
    print(f"{platform.machine()}, {os.cpu_count()} CPU cores, load {load:.1f}, {time.strftime('%Y-%m-%d')}")
    print(f"Target: {TARGET_TURNS_PER_S} turns/s per core for a pair of 1024 x 576.\n\n{table(results)}")
    if options.json:
        shapes = [asdict(shape) for shape in SHAPES]
        result = {name: [asdict(row) for row in rows] for name, rows in results.items()}
        options.json.write_text(json.dumps({"target": TARGET_TURNS_PER_S, "shapes": shapes, **result}, indent=2))


if __name__ == "__main__":
    main()
