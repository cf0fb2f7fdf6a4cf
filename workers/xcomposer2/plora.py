"""Partial LoRA: linear layers that add a low-rank term on image tokens only.

Extends vLLM's parallel linear layers for `model.py`: `y = W x`, plus `scale * B (A x)` at image positions. Text
positions, including generated tokens, use only the plain weight.

The low-rank term is one operator that is opaque to torch.compile. It decides at run time (or while a CUDA graph is
recorded) how much to compute. The decision is made once for all layers of a batch and kept in vLLM's forward context:

- If every request of the batch adds exactly one token, the batch is decoding and contains no image token, so the term
  is skipped. Reason: text follows every image, and the scheduler shortens a prompt's chunk to one token only when its
  token budget is used up. A batch of single tokens cannot use up a budget larger than the number of requests
  (`check_scheduler`). vLLM records its full CUDA graphs for exactly these batches.
- Otherwise, the term is computed for the rows of image tokens only. The tokens of an image are consecutive, so these
  rows are a few slices and nothing is copied. Finding them reads the mask from the GPU, once for each batch.
- While a CUDA graph is recorded, the term is computed for all rows and masked, because the graph must serve any mask.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, library, nn
from vllm.config import VllmConfig
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)
from vllm.forward_context import get_forward_context, is_forward_context_available
from vllm.model_executor.layers.linear import ColumnParallelLinear, RowParallelLinear
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.utils.torch_utils import direct_register_custom_op

_LIBRARY = library.Library("sharecap_xcomposer2", "FRAGMENT")
_IMAGE_RUNS = "sharecap_image_runs"  # attribute of the forward context
Run = tuple[int, int]


def check_scheduler(config: VllmConfig) -> None:
    """Raise ValueError if these settings allow an image token in a batch of single tokens."""
    scheduler = config.scheduler_config
    budget = getattr(scheduler, "max_num_scheduled_tokens", None) or scheduler.max_num_batched_tokens
    if budget <= scheduler.max_num_seqs:
        raise ValueError(f"max_num_batched_tokens ({budget}) must exceed max_num_seqs ({scheduler.max_num_seqs})")
    if scheduler.long_prefill_token_threshold == 1:
        raise ValueError("long_prefill_token_threshold must not be 1")


def _is_decoding() -> bool:
    """Return whether every request of the running batch adds exactly one token."""
    if not is_forward_context_available():
        return False
    metadata = get_forward_context().attn_metadata
    parts = metadata if isinstance(metadata, list) else [metadata]  # a list with dual-batch overlap
    layers = [next(iter(part.values()), None) if isinstance(part, dict) else part for part in parts]
    return all(getattr(layer, "max_query_len", 0) == 1 for layer in layers)


def _image_runs(is_image: Tensor) -> list[Run]:
    """Return the runs of image tokens in this batch. The first layer computes them for all layers."""
    if not is_forward_context_available():
        return runs_of(is_image)
    context: Any = get_forward_context()  # a new object for each batch
    if not hasattr(context, _IMAGE_RUNS):
        setattr(context, _IMAGE_RUNS, [] if _is_decoding() else runs_of(is_image))
    return cast(list[Run], getattr(context, _IMAGE_RUNS))


def runs_of(mask: Tensor) -> list[Run]:
    """Return (first, one past the last) of each run of true values in a mask [tokens]."""
    edges = F.pad(mask.to(torch.int8), (1, 1)).diff().nonzero().squeeze(1).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def _add_partial_lora(  # noqa: PLR0917
    y: Tensor, x: Tensor, is_image: Tensor, a: Tensor, b: Tensor, scale: float
) -> None:
    """In place: y [tokens, out] += scale * (x [tokens, in] a^T [in, r] b^T [r, out]) where is_image [tokens]."""
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        if not _is_decoding():
            add_masked(y, x, is_image, a, b, scale)
        return
    for start, stop in _image_runs(is_image):
        y[start:stop].addmm_(F.linear(x[start:stop], a), b.t(), alpha=scale)


def add_masked(  # noqa: PLR0917
    y: Tensor, x: Tensor, is_image: Tensor, a: Tensor, b: Tensor, scale: float
) -> None:
    """Like `_add_partial_lora`, for all rows, without reading the mask."""
    low = F.linear(x, a) * is_image.unsqueeze(1)  # [tokens, r]
    y.addmm_(low, b.t(), alpha=scale)


def _trace_partial_lora(  # noqa: PLR0917
    y: Tensor, x: Tensor, is_image: Tensor, a: Tensor, b: Tensor, scale: float
) -> None:
    return None


direct_register_custom_op(
    "add_partial_lora",
    _add_partial_lora,
    mutates_args=["y"],
    fake_impl=_trace_partial_lora,
    target_lib=_LIBRARY,
)


class LowRank(nn.Module):
    """One of the two low-rank weights, divided between tensor-parallel ranks along `parallel_dim` if given."""

    def __init__(self, rows: int, columns: int, parallel_dim: int | None = None) -> None:
        super().__init__()
        self.parallel_dim = parallel_dim
        shape = [rows, columns]
        if parallel_dim is not None:
            shape[parallel_dim] //= get_tensor_model_parallel_world_size()
        self.weight = nn.Parameter(torch.empty(shape), requires_grad=False)
        self.weight.weight_loader = self.load  # type: ignore[attr-defined]

    def load(self, parameter: nn.Parameter, tensor: Tensor) -> None:
        if self.parallel_dim is not None:
            size = parameter.shape[self.parallel_dim]
            tensor = tensor.narrow(self.parallel_dim, get_tensor_model_parallel_rank() * size, size)
        parameter.data.copy_(tensor)


class PartialLoRAColumnLinear(ColumnParallelLinear):
    """Ranks share the outputs: each has the whole A and its part of B, like the weight."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        rank: int,
        alpha: float,
        quant_config: QuantizationConfig | None,
        prefix: str,
    ) -> None:
        super().__init__(inputs, outputs, bias=False, quant_config=quant_config, prefix=prefix, return_bias=False)
        self.Plora_A = LowRank(rank, inputs)
        self.Plora_B = LowRank(outputs, rank, parallel_dim=0)
        self.scale = alpha / rank

    def forward(self, x: Tensor, is_image: Tensor) -> Tensor:  # type: ignore[override]
        """x [tokens, inputs], is_image [tokens] -> [tokens, outputs / ranks]"""
        y: Any = super().forward(x)
        torch.ops.sharecap_xcomposer2.add_partial_lora(
            y, x, is_image, self.Plora_A.weight, self.Plora_B.weight, self.scale
        )
        return y


class PartialLoRARowLinear(RowParallelLinear):
    """Ranks share the inputs: each has its part of A, like the weight, and the whole B. The results are summed."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        rank: int,
        alpha: float,
        quant_config: QuantizationConfig | None,
        prefix: str,
    ) -> None:
        super().__init__(
            inputs,
            outputs,
            bias=False,
            reduce_results=False,
            quant_config=quant_config,
            prefix=prefix,
            return_bias=False,
        )
        self.Plora_A = LowRank(rank, inputs, parallel_dim=1)
        self.Plora_B = LowRank(outputs, rank)
        self.scale = alpha / rank

    def forward(self, x: Tensor, is_image: Tensor) -> Tensor:  # type: ignore[override]
        """x [tokens, inputs / ranks], is_image [tokens] -> [tokens, outputs]"""
        y: Any = super().forward(x)
        torch.ops.sharecap_xcomposer2.add_partial_lora(
            y, x, is_image, self.Plora_A.weight, self.Plora_B.weight, self.scale
        )
        return tensor_model_parallel_all_reduce(y) if self.tp_size > 1 else y
