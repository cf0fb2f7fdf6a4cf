"""Cost of partial LoRA: the decoder with the published shapes, against the same decoder without the low-rank terms.

    python bench/partial_lora.py                      CPU: one decoder layer, bfloat16 and float32; GPU: all layers
    python bench/partial_lora.py --layers 32 --dtypes bfloat16
    python bench/partial_lora.py --smoke              tiny shapes

vLLM runs the model with dummy weights in this process, without compilation. The time of each step of the decoder is
measured, without vision tower and logits: on a CPU in CPU seconds of one thread, which depend least on what else runs,
on a GPU in seconds. Batches with and without the terms alternate. A prefill batch is one prompt
with one image (hd_num 9); a decode batch is 8 requests of text. A profile shows what the operator ran for text.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the modules of this folder

from bench.published import SMALL_VISION, TINY, write_checkpoint

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TQDM_DISABLE": "1"}
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

import torch
from PIL import Image
from vllm import LLM, SamplingParams

from workers.xcomposer2 import model as xcomposer2_model
from workers.xcomposer2.plora import PartialLoRAColumnLinear, PartialLoRARowLinear
from workers.xcomposer2.plugin import check_registered, engine_args
from workers.xcomposer2.tokenizer import load_tokenizer, turn_ids

TARGETS = {"prefill": 0.10, "decode": 0.02}
OPERATOR = "sharecap_xcomposer2::add_partial_lora"
DECODE_REQUESTS = 8
DECODE_TOKENS = 16
IMAGE_PX = (1024, 576)
Steps = list[tuple[int, float]]
"""For each step of the decoder: the number of tokens, and seconds."""


@contextmanager
def timed_decoder() -> Iterator[Steps]:
    """Collect the steps that the decoder runs inside the block."""
    steps: Steps = []
    forward = xcomposer2_model.InternLM2Model.forward

    def timed(self: Any, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        start = clock_s()
        result = forward(self, input_ids, *args, **kwargs)
        steps.append((len(input_ids), clock_s() - start))
        return result

    xcomposer2_model.InternLM2Model.forward = timed  # type: ignore[method-assign]
    try:
        yield steps
    finally:
        xcomposer2_model.InternLM2Model.forward = forward  # type: ignore[method-assign]


@contextmanager
def without_partial_lora() -> Iterator[None]:
    """Make the layers of all models plain linear layers inside the block."""
    column, row = PartialLoRAColumnLinear.forward, PartialLoRARowLinear.forward
    plain: Callable[..., Any] = lambda self, x, _: super(type(self), self).forward(x)  # noqa: E731
    PartialLoRAColumnLinear.forward = PartialLoRARowLinear.forward = plain  # type: ignore[method-assign]
    try:
        yield
    finally:
        PartialLoRAColumnLinear.forward, PartialLoRARowLinear.forward = column, row  # type: ignore[method-assign]


def clock_s() -> float:
    """Return the CPU seconds of this process, or with a GPU the time after all its work."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def prompts(model: str, kind: str, number: int) -> list[Any]:
    """Return the prompts of one batch. Those of different numbers share no cached prefix."""
    tokenizer = load_tokenizer(model)
    if kind == "decode":
        return [
            {"prompt_token_ids": turn_ids(tokenizer, f"{number} {k} Describe a red circle.", image=False)}
            for k in range(DECODE_REQUESTS)
        ]
    image = Image.new("RGB", IMAGE_PX, (number % 256, number // 256, 90))
    ids = turn_ids(tokenizer, "Describe what changes between the two frames. " * 8, image=True)
    return [{"prompt_token_ids": ids, "multi_modal_data": {"image": image}}]


def step_s(llm: LLM, model: str, kind: str, number: int) -> float:
    """Run one batch. Returns the seconds of its prefill, or the median of its decode steps."""
    tokens = DECODE_TOKENS if kind == "decode" else 1
    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    with timed_decoder() as steps:
        llm.generate(prompts(model, kind, number), sampling, use_tqdm=False)
    if kind == "decode":
        return statistics.median(seconds for count, seconds in steps if count == DECODE_REQUESTS)
    return sum(seconds for _, seconds in steps)


def measure(llm: LLM, model: str, kind: str, rounds: int) -> dict[str, Any]:
    """Return the seconds of one kind of batch with and without partial LoRA, and their ratio minus 1."""
    with_s, without_s = [], []
    for number in range(rounds + 1):  # the first round warms up
        with_s.append(step_s(llm, model, kind, 2 * number))
        with without_partial_lora():
            without_s.append(step_s(llm, model, kind, 2 * number + 1))
    ratios = [a / b for a, b in zip(with_s[1:], without_s[1:], strict=True)]
    return {
        "batch": kind,
        "with_s": statistics.median(with_s[1:]),
        "without_s": statistics.median(without_s[1:]),
        "slower": statistics.median(ratios) - 1,
        "target": TARGETS[kind],
    }


def operators_inside(llm: LLM, model: str) -> dict[str, int]:
    """Return the operators that `OPERATOR` called while decoding, and how often; empty if it never ran anything."""
    sampling = SamplingParams(temperature=0, max_tokens=DECODE_TOKENS, ignore_eos=True)
    batch = prompts(model, "decode", 10_000)
    with torch.profiler.profile(acc_events=True) as profile:
        llm.generate(batch, sampling, use_tqdm=False)
    calls: dict[str, int] = {}
    for event in profile.events() or []:
        if event.name == OPERATOR:
            calls[OPERATOR] = calls.get(OPERATOR, 0) + 1
            for child in event.cpu_children:
                calls[child.name] = calls.get(child.name, 0) + 1
    return calls


def run(dtype: str, layers: int, rounds: int, changes: dict[str, Any]) -> dict[str, Any]:
    """Measure both kinds of batches with one model."""
    with tempfile.TemporaryDirectory() as directory:
        model = write_checkpoint(Path(directory), num_hidden_layers=layers, vision_config=SMALL_VISION, **changes)
        options: dict[str, Any] = {"dtype": dtype, "load_format": "dummy", "enforce_eager": True, "max_model_len": 4096}
        if not torch.cuda.is_available():
            options["kv_cache_memory_bytes"] = 1 << 28
        llm = LLM(**engine_args(model, **options))
        rows = [measure(llm, model, kind, rounds) for kind in TARGETS]
        return {"dtype": dtype, "layers": layers, "batches": rows, "operators": operators_inside(llm, model)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_gpu = torch.cuda.is_available()
    dtypes = ["bfloat16"] if on_gpu else ["bfloat16", "float32"]
    parser.add_argument("--layers", type=int, default=32 if on_gpu else 1, help="decoder layers")
    parser.add_argument("--dtypes", nargs="+", default=dtypes)
    parser.add_argument("--rounds", type=int, default=7, help="measured batches of each kind")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, float32, one round")
    options = parser.parse_args()
    check_registered()
    if options.smoke:
        results = [run("float32", 1, 1, TINY)]
    else:
        results = [run(dtype, options.layers, options.rounds, {}) for dtype in options.dtypes]
    device = torch.cuda.get_device_name() if on_gpu else f"{platform.machine()}, {os.cpu_count()} CPU cores"
    print(f"{device}, load {os.getloadavg()[0]:.1f}, {time.strftime('%Y-%m-%d')}\n")
    print(
        "| dtype | layers | batch | with, ms | without, ms | slower by | target |\n|---|---:|---|---:|---:|---:|---:|"
    )
    for result in results:
        for row in result["batches"]:
            times = f"{1000 * row['with_s']:.1f} | {1000 * row['without_s']:.1f}"
            share = f"{100 * row['slower']:.1f}% | {100 * row['target']:.0f}%"
            print(f"| {result['dtype']} | {result['layers']} | {row['batch']} | {times} | {share} |")
        print(f"\nOperators in {result['dtype']} batches of text, prefill and decoding: {result['operators']}\n")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
