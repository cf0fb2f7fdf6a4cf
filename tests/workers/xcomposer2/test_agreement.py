"""vLLM with the plugin generates exactly the tokens of the reference implementation: float32, greedy.

Three random checkpoints, one engine each: both layouts of weights, both `model_type`s, with and without an `auto_map`.
Each runs twenty images from 1:8 to 8:1 and prompts without an image, first as one batch, then some one at a time. One
engine's token budget is so small that images are split into chunks. One process runs all engines.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.reference.checkpoint import random_image, write_checkpoint
from tests.reference.model import Answer, ReferenceModel

ROOT = Path(__file__).resolve().parents[3]
MAX_TOKENS = 10
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "internlm2-safetensors": {"seed": 1, "model_type": "internlm2", "layout": "safetensors", "auto_map": True},
    "internlmxcomposer2-bin": {"seed": 2, "model_type": "internlmxcomposer2", "layout": "bin", "auto_map": False},
    "internlm2-bin-chunks": {"seed": 3, "model_type": "internlm2", "layout": "bin", "auto_map": True},
}
SMALL_BUDGET = {"max_num_batched_tokens": 48, "max_num_seqs": 6}
PROMPTS = ["This is the first frame of a video, describe it in detail.", "hi", "What is   this?\n你好 👩‍👩‍👧", ""]


def questions() -> list[dict[str, Any]]:
    """Return twenty images, 1:8 to 8:1, with various crop budgets; one of them with two more; and text prompts."""
    result: list[dict[str, Any]] = []
    for number in range(20):
        ratio = 8 ** (number / 9.5 - 1)  # width / height
        size = [round(150 * ratio**0.5), round(150 / ratio**0.5)]
        hd_num = [1, 2, 4, 9, 16, None][number % 6]
        result.append({"prompt": PROMPTS[number % 4], "size": size, "seed": number, "hd_num": hd_num})
    result += [{**result[9], "hd_num": 16}, {**result[9], "hd_num": 1}]
    result += [{"prompt": prompt, "size": None, "seed": 0, "hd_num": None} for prompt in PROMPTS]
    for number in (0, 9, 19, 22):
        result[number]["alone"] = True
    return result


@dataclass
class Compared:
    """The answers of the reference and of vLLM for one checkpoint."""

    reference: ReferenceModel
    expected: list[Answer]
    answers: dict[str, Any]


@dataclass
class Answers:
    """The checkpoints, vLLM's answers by checkpoint, and its log."""

    directories: dict[str, Path]
    answers: dict[str, Any]
    log: str


@pytest.fixture(scope="module")
def vllm_answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    base = tmp_path_factory.mktemp("checkpoints")
    directories = {name: write_checkpoint(base / name, **options) for name, options in CHECKPOINTS.items()}
    requests = [
        {
            "model": str(directory),
            "questions": questions(),
            "max_tokens": MAX_TOKENS,
            "engine": SMALL_BUDGET if name.endswith("chunks") else {},
            "refused": [{"prompt": "", "size": [99, 99], "seed": 0, "hd_num": bad} for bad in (0, 56, "9", True)],
        }
        for name, directory in directories.items()
    ]
    run = subprocess.run(
        [sys.executable, "-m", "tests.reference.vllm_answers", str(base / "answers.json")],
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "INFO"},
        timeout=500,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    answers = dict(zip(directories, json.loads((base / "answers.json").read_text()), strict=True))
    return Answers(directories, answers, run.stdout + run.stderr)


@pytest.fixture(scope="module", params=CHECKPOINTS)
def compared(request: pytest.FixtureRequest, vllm_answers: Answers) -> Compared:
    reference = ReferenceModel(vllm_answers.directories[request.param])
    expected_answers = [expected(reference, question) for question in questions()]
    return Compared(reference, expected_answers, vllm_answers.answers[request.param])


def expected(reference: ReferenceModel, question: dict[str, Any]) -> Answer:
    """Return the answer of the reference implementation."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # faster for tiny matrices
    size = question["size"]
    image = random_image(tuple(size), question["seed"]) if size else None
    hd_num = question["hd_num"] or reference.config["sharecap"]["hd_num"]
    answer = reference.answer(question["prompt"], image, hd_num, MAX_TOKENS)
    torch.set_num_threads(threads)
    return answer


def test_all_tokens_are_equal(compared: Compared) -> None:
    together = compared.answers["together"]
    assert [answer["ids"] for answer in together] == [answer.token_ids for answer in compared.expected]
    assert [answer["prompt"] for answer in together] == [answer.prompt_tokens for answer in compared.expected]
    alone = [answer for answer, question in zip(together, questions(), strict=True) if question.get("alone")]
    assert compared.answers["alone"] == alone


def test_the_comparison_is_meaningful(compared: Compared) -> None:
    """The best logits are far enough apart for rounding errors, and the images lead to different answers."""
    assert min(answer.margin for answer in compared.expected) > 1e-4
    assert len({tuple(answer.token_ids) for answer in compared.expected}) >= 20
    assert {answer.image_tokens > 0 for answer in compared.expected} == {True, False}


@pytest.mark.parametrize("damage", ["no partial LoRA", "no LoRA on one map", "separators swapped", "LoRA on text too"])
def test_damage_changes_the_answers(compared: Compared, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With these faults, answers about images change; answers without an image change only if LoRA affects text."""
    damaged = ReferenceModel.__new__(ReferenceModel)
    damaged.__dict__ = {**compared.reference.__dict__, "tensors": dict(compared.reference.tensors)}
    tensors = damaged.tensors
    if damage == "separators swapped":
        view_end, row_end = tensors["plora_glb_GN"], tensors["plora_sub_GN"]
        tensors["plora_glb_GN"], tensors["plora_sub_GN"] = row_end, view_end
    elif damage == "LoRA on text too":
        plain = damaged.plora_linear
        monkeypatch.setattr(
            damaged, "plora_linear", lambda x, is_image, name: plain(x, torch.ones_like(is_image), name), raising=False
        )
    else:
        part = "wqkv.Plora_B" if damage == "no LoRA on one map" else "Plora_B"
        for name in [name for name in tensors if part in name]:
            tensors[name] = torch.zeros_like(tensors[name])
    changed = [
        expected(damaged, question).token_ids != answer.token_ids
        for question, answer in list(zip(questions(), compared.expected, strict=True))[:20:4]
    ]
    assert sum(changed) > len(changed) / 2
    text = next(question for question in questions() if not question["size"])
    same = expected(damaged, text).token_ids == expected(compared.reference, text).token_ids
    assert same == (damage != "LoRA on text too")


def test_the_log_has_no_errors_and_no_remote_code(vllm_answers: Answers) -> None:
    assert "ERROR" not in vllm_answers.log
    assert "remote code" not in vllm_answers.log


def test_invalid_budgets_are_rejected(compared: Compared) -> None:
    for message in compared.answers["refused"]:
        assert "hd_num must be a whole number from 1 to" in message
