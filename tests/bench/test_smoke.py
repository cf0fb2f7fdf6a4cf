"""Every benchmark runs at its smallest size and writes its figures.

Here, `engine_share.py` uses its stub engine, and `gpu.py` leaves out the engine alone. With `SOAK=1` both also run with
the engine alone, which starts one more engine or two.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
SOAK = pytest.mark.skipif("SOAK" not in os.environ, reason="starts several engines; SOAK=1 runs it")


@pytest.mark.parametrize(
    "command",
    [
        ("engine_share.py", "--stub"),
        ("turn_cost.py",),
        ("preprocess.py",),
        ("partial_lora.py",),
        ("gateway.py",),
        ("start.py",),
        ("gpu.py", "--service-only"),
        ("frames.py",),
        pytest.param(("engine_share.py",), marks=SOAK),
        pytest.param(("gpu.py",), marks=SOAK),
    ],
    ids=" ".join,
)
def test_a_benchmark_runs_at_its_smallest_size(command: tuple[str, ...], tmp_path: Path) -> None:
    script, *options = command
    figures = tmp_path / "figures.json"
    arguments = [sys.executable, str(BENCH / script), *options, "--smoke", "--json", str(figures)]
    run = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    assert json.loads(figures.read_text())
    print(run.stdout)
    assert "|" in run.stdout, "a table"
