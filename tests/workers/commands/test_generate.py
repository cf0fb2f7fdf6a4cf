"""`python -m workers.commands.generate`: one JSON object on stdout, or one line on stderr and exit status 1."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.reference.checkpoint import random_image, random_tensors, save_tensors, write_checkpoint
from tests.reference.model import ReferenceModel

ROOT = Path(__file__).resolve().parents[3]
PROMPT = "Describe it, [UNUSED_TOKEN_145] please."


def generate(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workers.commands.generate", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        timeout=400,
        check=False,
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("generate") / "checkpoint"
    return write_checkpoint(path, seed=5, model_type="internlmxcomposer2", layout="bin", auto_map=True)


def error_of(run: subprocess.CompletedProcess[str]) -> str:
    assert run.returncode != 0
    assert run.stdout == ""
    assert "Traceback" not in run.stderr
    return run.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("with_image", [True, False])
def test_a_turn_agrees_with_the_reference(directory: Path, tmp_path: Path, with_image: bool) -> None:
    image = random_image((200, 90), 1) if with_image else None
    arguments: list[object] = ["--prompt", PROMPT, "--max-tokens", 8, "--dtype", "float32", "--json"]
    if image:
        image.save(tmp_path / "image.png")
        arguments += ["--image", tmp_path / "image.png", "--hd-num", 6]
    run = generate("--model", directory, *arguments)
    assert (run.returncode, run.stderr) == (0, "")
    torch.set_num_threads(1)
    reference = ReferenceModel(directory)
    expected = reference.answer(PROMPT.replace("[UNUSED_TOKEN_145]", "[UNUSED TOKEN 145]"), image, 6, 8)
    ends = {reference.tokenizer.piece_to_id("[UNUSED_TOKEN_145]"), reference.tokenizer.eos_id()}
    assert json.loads(run.stdout) == {
        "prompt_tokens": expected.prompt_tokens,
        "image_tokens": expected.image_tokens,
        "token_ids": expected.token_ids,
        "text": reference.tokenizer.decode([number for number in expected.token_ids if number not in ends]),
    }


def test_the_error_names_a_missing_tensor(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "checkpoint", seed=6, model_type="internlm2", layout="safetensors")
    tensors = random_tensors(640, seed=6)
    del tensors["model.layers.2.feed_forward.w3.Plora_B.weight"]
    save_tensors(directory, tensors, "safetensors")
    run = generate("--model", directory, "--prompt", "hi", "--json")
    assert "missing tensor model.layers.2.feed_forward.w3.Plora_B.weight" in error_of(run)


def test_the_error_names_a_disabled_plugin(directory: Path) -> None:
    run = generate("--model", directory, "--prompt", "hi", "--json", VLLM_PLUGINS="")
    assert "VLLM_PLUGINS leaves out sharecap_xcomposer2" in error_of(run)


def test_invalid_input(directory: Path, tmp_path: Path) -> None:
    assert "no such checkpoint directory" in error_of(generate("--model", tmp_path / "none", "--prompt", "hi"))
    (tmp_path / "text.png").write_text("not an image")
    run = generate("--model", directory, "--prompt", "hi", "--image", tmp_path / "text.png")
    assert "cannot be read as an image" in error_of(run)
    assert "takes 512" in error_of(generate("--model", directory, "--prompt", "hi " * 600))
    assert "must be at least 1" in error_of(generate("--model", directory, "--prompt", "hi", "--hd-num", "0"))
