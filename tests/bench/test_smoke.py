"""Every benchmark runs at its smallest size and writes its figures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.mark.parametrize(
    "command",
    [
        ("engine_share.py", "--stub"),
        ("turn_cost.py",),
        ("preprocess.py",),
        ("partial_lora.py",),
        ("gateway.py",),
        ("start.py",),
        ("gpu.py",),
        ("frames.py",),
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
    assert "|" in run.stdout, "a table"
