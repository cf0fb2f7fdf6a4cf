"""The engine with a random checkpoint: quantised weights, CUDA graphs of the vision tower, compilation, partial LoRA.

One process runs all engines, on the CPU; `SOAK=1` adds a checkpoint in FP8. Quantised checkpoints compute in bfloat16
and are compared with the reference implementation on the values that the quantised weights stand for. A CUDA graph is
replaced by the function that it would record. vLLM's CPU build lacks the operator that quantises a tensor to FP8, so
the process brings its own. vLLM's FP8 kernel for CPUs needs AMX; without it, the FP8 engines are not started.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from torch import Tensor

from tests.reference.checkpoint import SIZES, VISION, random_image, random_tensors, save_tensors, write_checkpoint
from tests.reference.model import ReferenceModel
from tests.reference.quantise import CONFIGS, quantise

ROOT = Path(__file__).resolve().parents[3]
SEED = 5
PROMPTS = [(f"What is this? {number}", [150, 90 + 30 * number]) for number in range(5)] + [("hi", None)]
LIKELY = -4.0  # compare the log-probabilities of tokens above this one
LINEARS = ("attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
HD_NUM = 4  # of the checkpoint
FP8_KINDS = ("eight-bits", "online")
HAS_AMX = "amx_tile" in Path("/proc/cpuinfo").read_text()
SELECTED = [kind for kind in (*CONFIGS, "online") if kind != "eight-bits" or os.environ.get("SOAK") == "1"]
needs_amx = pytest.mark.skipif(not HAS_AMX, reason="vLLM's FP8 kernel for CPUs needs AMX")
KINDS = [pytest.param(kind, marks=[needs_amx] if kind in FP8_KINDS else []) for kind in SELECTED]
Results = dict[str, Any]


class LastLogits(ReferenceModel):
    """The reference, which keeps the logits of the last token it generated."""

    last: Tensor

    def logits(self, x: Tensor, is_image: Tensor) -> Tensor:
        self.last = super().logits(x, is_image)
        return self.last


def write_variant(base: Path, name: str, tensors: dict[str, Tensor], quantization: dict[str, object] | None) -> Path:
    """Write a checkpoint with other tensors."""
    directory = base.with_name(name)
    directory.mkdir()
    config = json.loads((base / "config.json").read_text())
    if quantization:
        config["quantization_config"] = quantization
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.model").write_bytes((base / "tokenizer.model").read_bytes())
    save_tensors(directory, {key: tensor.contiguous() for key, tensor in tensors.items()}, "safetensors")
    return directory


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(
        tmp_path_factory.mktemp("engines") / "plain", seed=SEED, model_type="internlm2", layout="safetensors"
    )


@pytest.fixture(scope="module")
def tensors(base: Path) -> dict[str, Tensor]:
    return random_tensors(json.loads((base / "config.json").read_text())["vocab_size"], SEED)


def quantised_engine(kind: str, base: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return an engine of `engine_checks.py`. "online" quantises the plain checkpoint at its start."""
    options, directory = {"dtype": "bfloat16"}, base
    if kind == "online":
        options["quantization"] = "fp8_per_tensor"
    else:
        directory = write_variant(base, kind, quantise(tensors, kind)[0], CONFIGS[kind])
    return {"name": kind, "directory": str(directory), "engine": options, "inspect": ["dtypes"]}


@pytest.fixture(scope="module")
def results(base: Path, tensors: dict[str, Tensor]) -> Results:
    """The results of all engines, by name."""
    engines: list[dict[str, Any]] = [
        {"name": "plain", "directory": str(base), "engine": {"dtype": "float32"}, "inspect": ["graphs", "steps"]},
        {
            "name": "compiled",
            "directory": str(base),
            "engine": {"dtype": "float32", "enforce_eager": False, "compilation_config": {"backend": "eager"}},
            "inspect": [],
        },
    ]
    for kind in SELECTED:
        if HAS_AMX or kind not in FP8_KINDS:
            engines.append(quantised_engine(kind, base, tensors))
    file = base.with_name("results.json")
    run = subprocess.run(
        [sys.executable, "-m", "tests.reference.engine_checks", str(file)],
        input=json.dumps({"prompts": PROMPTS, "engines": engines}),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "WARNING"},
        timeout=500,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    answers: Results = json.loads(file.read_text())
    return answers


def reference_logprobs(directory: Path) -> list[Tensor]:
    """Return the log-probabilities of the first token of each answer."""
    reference = LastLogits(directory)
    result = []
    for number, (text, size) in enumerate(PROMPTS):
        image = random_image((size[0], size[1]), number) if size else None
        reference.answer(text, image, reference.config["sharecap"]["hd_num"], 1)
        result.append(reference.last.log_softmax(0))
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_checkpoint_answers_like_the_values_it_stands_for(
    kind: str, results: Results, base: Path, tensors: dict[str, Tensor]
) -> None:
    meant = quantise(tensors, "eight-bits" if kind == "online" else kind)[1]
    expected = reference_logprobs(write_variant(base, f"{kind}-values", meant, None))
    plain = reference_logprobs(base)
    errors, changes = [], []
    for first, values, unquantised in zip(results[kind]["first"], expected, plain, strict=True):
        likely = [(int(token), logprob) for token, logprob in first.items() if values[int(token)] > LIKELY]
        errors += [abs(logprob - float(values[token])) for token, logprob in likely]
        changes += [abs(logprob - float(unquantised[token])) for token, logprob in likely]
    assert len(errors) > 20
    assert fmean(errors) < 0.25  # bfloat16
    if kind in ("four-bits", "awq"):  # FP8 changes little
        assert fmean(errors) < fmean(changes) / 3


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_linear_layers_of_the_language_model_are_quantised(kind: str, results: Results) -> None:
    quantised = {
        name.rpartition(".")[0]
        for name, dtype in results[kind]["dtypes"].items()
        if dtype not in ("torch.bfloat16", "torch.float32")  # vLLM's CPU build widens the tower's biases
    }
    layers = range(SIZES["num_hidden_layers"])
    assert quantised == {f"model.layers.{layer}.{linear}" for layer in layers for linear in LINEARS}


def test_the_vision_tower_gives_the_same_embeddings_through_graphs(results: Results) -> None:
    """Also if no graph is large enough, as in the second run of the batch."""
    graphs = results["plain"]["graphs"]
    assert graphs["recognised"]
    assert graphs["equal_shapes"]
    assert graphs["difference"] <= 1e-5 * graphs["scale"]
    assert (graphs["hits"], graphs["misses"]) == (len(graphs["tokens"]), len(graphs["tokens"]))
    assert graphs["spec_tokens"] == graphs["tokens"]
    assert graphs["nothing"] == 0


def test_budgets_fit_whole_images_of_the_default_size(results: Results) -> None:
    graphs = results["plain"]["graphs"]
    tokens_per_crop = (VISION["image_size"] // VISION["patch_size"] // 2) ** 2
    image = (HD_NUM + 1) * tokens_per_crop
    assert graphs["budgets"][:3] == [image, 2 * image, 4 * image]
    assert graphs["budgets"][-1] >= sum(graphs["crops"]) * tokens_per_crop


def test_a_compiled_decoder_generates_the_same_tokens(results: Results) -> None:
    assert results["compiled"]["compiled_graphs"] > results["plain"]["compiled_graphs"]
    assert results["compiled"]["ids"] == results["plain"]["ids"]


def test_decoding_multiplies_nothing_for_partial_lora(results: Results) -> None:
    """The operator is called for each linear layer. It multiplies once for each image in a batch."""
    prefill, *decoding = results["plain"]["steps"]
    calls = len(LINEARS) * SIZES["num_hidden_layers"]
    images = sum(1 for _, size in PROMPTS if size)
    assert prefill["image_tokens"] > 0
    assert (prefill["calls"], prefill["multiplications"]) == (calls, calls * images)
    assert len(decoding) == results["max_tokens"] - 1
    for step in decoding:
        assert step == {
            "tokens": len(PROMPTS),
            "image_tokens": 0,
            "calls": calls,
            "multiplications": 0,
            "operators": 0,
        }
