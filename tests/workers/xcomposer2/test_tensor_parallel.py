"""Two tensor-parallel ranks generate the tokens of one: float32, greedy, on the CPU.

Starting two ranks takes longer than a test may, so this runs only with `make soak`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.reference.checkpoint import write_checkpoint

ROOT = Path(__file__).resolve().parents[3]
PROMPTS = [(f"What is this? {number}", [150, 90 + 30 * number]) for number in range(3)] + [("hi", None)]


@pytest.mark.skipif(os.environ.get("SOAK") != "1", reason="starts two ranks; runs with `make soak`")
def test_two_ranks_generate_the_same_tokens(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "plain", seed=6, model_type="internlm2", layout="safetensors")
    results = [run(directory, tmp_path / f"{ranks}.json", ranks) for ranks in (1, 2)]
    assert results[0]["ids"] == results[1]["ids"]
    assert results[1]["ranks"] == 2


def run(directory: Path, file: Path, ranks: int) -> dict[str, Any]:
    """Return the results of an engine with this number of ranks."""
    arguments = {"dtype": "float32", "tensor_parallel_size": ranks}
    engine = {"name": "engine", "directory": str(directory), "engine": arguments, "inspect": []}
    env = {**os.environ, "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "WARNING"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.reference.engine_checks", str(file)],
        input=json.dumps({"prompts": PROMPTS, "engines": [engine]}),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=env,
        timeout=500,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    result: dict[str, Any] = json.loads(file.read_text())["engine"]
    return result
