"""Runs several engines with the plugin in one process and writes what `test_engines.py` asserts about them.

`python -m tests.reference.engine_checks RESULTS < REQUEST`, both JSON. The request contains prompts, which all engines
answer, and the engines: name, checkpoint directory, engine arguments, and which further checks to run.
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "TQDM_DISABLE": "1"}

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from vllm import LLM, SamplingParams
from vllm import _custom_ops as ops
from vllm.model_executor.models.interfaces import supports_encoder_cudagraph
from vllm.v1.worker.encoder_cudagraph import BudgetGraphMetadata, EncoderCudaGraphManager

from tests.reference.checkpoint import random_image
from workers.xcomposer2.hd_tiling import plan_tiling
from workers.xcomposer2.image import cut_tiles
from workers.xcomposer2.model import InternLM2Model
from workers.xcomposer2.plugin import check_registered, engine_args
from workers.xcomposer2.tokenizer import load_tokenizer, turn_ids

OPERATOR = "sharecap_xcomposer2::add_partial_lora"
MAX_TOKENS = 8
LOGPROBS = 20
GRAPH_IMAGES = [(100, 100), (300, 100), (100, 400), (160, 90), (90, 160), (400, 100)]


def quantise_to_fp8(x: Tensor, scale: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    """Replaces vLLM's operator of the same purpose, which its CPU build lacks."""
    limits = torch.finfo(torch.float8_e4m3fn)
    return (x.float() / scale).clamp(limits.min, limits.max).to(torch.float8_e4m3fn), scale


class EagerManager(EncoderCudaGraphManager):
    """vLLM's manager of the encoder's graphs. To replay a graph, it runs the recorded function again."""

    def _capture_budget_graph(self, token_budget: int, path: str = "default", axis_keys: Any = ()) -> None:
        inputs = self.model.prepare_encoder_cudagraph_capture_inputs(
            token_budget, self.max_batch_size, self.max_frames_per_batch, self.device, self.dtype, path, axis_keys
        )
        output = torch.full_like(self.model.encoder_cudagraph_forward({**inputs.values}, path=path), torch.nan)
        graph: Any = SimpleNamespace(
            replay=lambda: output.copy_(self.model.encoder_cudagraph_forward({**inputs.values}, path=path))
        )
        self._get_graph_set(path)[token_budget] = BudgetGraphMetadata(
            token_budget, self.max_batch_size, self.max_frames_per_batch, graph, inputs.values, output
        )


def image_batch(model: Any) -> dict[str, Tensor]:
    """Return a batch of images with different grids, as the model receives it."""
    side = model.config.vision_config.image_size
    tilings = [plan_tiling(*size, hd_num=4 + number, crop=side) for number, size in enumerate(GRAPH_IMAGES)]
    images = [random_image(size, number) for number, size in enumerate(GRAPH_IMAGES)]
    tiles = [cut_tiles(image, tiling) for image, tiling in zip(images, tilings, strict=True)]
    return {"pixel_values": torch.cat(tiles), "grid": torch.tensor([(t.rows, t.cols) for t in tilings])}


@torch.inference_mode()
def encoder_graphs(llm: LLM, model: Any) -> dict[str, Any]:
    """Compare the embeddings that the manager computes with those of the usual path."""
    batch = image_batch(model)
    usual = model.embed_multimodal(**batch)
    dtype = model.plora_sub_GN.dtype
    manager = EagerManager(llm.llm_engine.vllm_config, torch.device("cpu"), dtype, model)
    manager.capture(graph_pool=object())
    replayed = manager.execute(batch)
    manager.path_token_budgets = {"default": [1]}  # no image fits
    hits, manager.graph_hits = manager.graph_hits, 0
    eager = manager.execute(batch)
    pairs = [*zip(usual, replayed, strict=True), *zip(usual, eager, strict=True)]
    specs = model.get_encoder_cudagraph_item_specs(batch)
    return {
        "recognised": supports_encoder_cudagraph(model),
        "budgets": manager.token_budgets,
        "hits": hits,
        "misses": manager.graph_misses,
        "equal_shapes": all(a.shape == b.shape for a, b in pairs),
        "difference": max(float((a - b).abs().max()) for a, b in pairs),
        "scale": float(torch.cat(list(usual)).abs().max()),
        "tokens": [len(embeddings) for embeddings in usual],
        "spec_tokens": [spec.output_tokens for spec in specs],
        "crops": [spec.input_size for spec in specs],
        "nothing": len(model.select_encoder_cudagraph_items(batch, [])["pixel_values"]),
    }


def profiled_steps(llm: LLM, prompts: list[Any], sampling: SamplingParams) -> list[dict[str, int]]:
    """Run the prompts. Returns for each step of the decoder its tokens, and what the operator of partial LoRA did."""
    steps: list[dict[str, int]] = []
    forward = InternLM2Model.forward

    def profiled(self: Any, input_ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with torch.profiler.profile(acc_events=True) as profile:
            result = forward(self, input_ids, *args, **kwargs)
        calls = [event for event in profile.events() or [] if event.name == OPERATOR]
        children = [child.name for call in calls for child in call.cpu_children]
        steps.append(
            {
                "tokens": len(input_ids),
                "image_tokens": int((input_ids == self.config.image_token_id).sum()),
                "calls": len(calls),
                "multiplications": children.count("aten::addmm_"),
                "operators": len(children),
            }
        )
        return result

    InternLM2Model.forward = profiled  # type: ignore[method-assign]
    try:
        llm.generate(prompts, sampling, use_tqdm=False)
    finally:
        InternLM2Model.forward = forward  # type: ignore[method-assign]
    return steps


def run(engine: dict[str, Any], questions: list[tuple[str, list[int] | None]]) -> dict[str, Any]:
    """Start an engine and run the prompts and the selected checks."""
    tokenizer = load_tokenizer(engine["directory"])
    options = {"max_model_len": 512, "kv_cache_memory_bytes": 1 << 24, "enforce_eager": True, **engine["engine"]}
    llm = LLM(**engine_args(engine["directory"], **options))
    prompts: list[Any] = [
        {"prompt_token_ids": turn_ids(tokenizer, text, image=size is not None)}
        | ({"multi_modal_data": {"image": random_image(tuple(size), number)}} if size else {})
        for number, (text, size) in enumerate(questions)
    ]
    sampling = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, logprobs=LOGPROBS, ignore_eos=True)
    outputs = [output.outputs[0] for output in llm.generate(prompts, sampling, use_tqdm=False)]
    result: dict[str, Any] = {
        "ids": [list(output.token_ids) for output in outputs],
        "first": [
            {token: entry.logprob for token, entry in (output.logprobs or [{}])[0].items()} for output in outputs
        ],
        "compiled_graphs": counters["stats"]["unique_graphs"],
        "ranks": llm.llm_engine.vllm_config.parallel_config.tensor_parallel_size,
    }
    if "dtypes" in engine["inspect"]:
        types = llm.apply_model(lambda model: {name: str(value.dtype) for name, value in model.named_parameters()})
        result["dtypes"] = types[0]
    if "graphs" in engine["inspect"]:
        result["graphs"] = llm.apply_model(lambda model: encoder_graphs(llm, model))[0]
    if "steps" in engine["inspect"]:
        result["steps"] = profiled_steps(llm, prompts, sampling)
    llm.llm_engine.engine_core.shutdown()
    return result


def main() -> None:
    check_registered()
    ops.scaled_fp8_quant = quantise_to_fp8
    request = json.load(sys.stdin)
    results: dict[str, Any] = {"max_tokens": MAX_TOKENS}
    for engine in request["engines"]:
        results[engine["name"]] = run(engine, request["prompts"])
    Path(sys.argv[1]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
