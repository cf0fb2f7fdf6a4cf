"""Locating a checkpoint's files: in a directory or in the hub's cache."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workers.xcomposer2.checkpoint import checkpoint_file

ROOT = Path(__file__).resolve().parents[3]


def test_a_hub_id_is_found_in_the_hub_cache(tmp_path: Path) -> None:
    """The cache looks as after a download, and the hub is offline."""
    repository = tmp_path / "hub" / "models--someone--captioner"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"architectures": ["InternLMXComposer2ForCausalLM"]}')
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    program = "from workers.xcomposer2.checkpoint import *; print(is_xcomposer2(read_config('someone/captioner')))"
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    assert (run.stdout, run.returncode) == ("True\n", 0), run.stderr


@pytest.mark.parametrize("model", ["/nowhere/at/all", "./nowhere", "no/where/either", "nowhere"])
def test_neither_a_directory_nor_a_hub_id(model: str) -> None:
    with pytest.raises(FileNotFoundError, match="no such checkpoint directory"):
        checkpoint_file(model, "config.json")


def test_importing_the_package_is_fast() -> None:
    """The package does not import torch, transformers or vLLM."""
    program = "import sys, workers.xcomposer2; print({'torch', 'transformers', 'vllm'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout == "set()\n"
