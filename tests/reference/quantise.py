"""Quantises the language model of a tiny checkpoint in the formats of compressed-tensors and AWQ.

The vision tower, the projector, partial LoRA, the embedding and the output layer stay as they are. Each format also
returns the values that its quantised weights stand for.
"""

from collections.abc import Callable

import torch
from torch import Tensor

GROUP = 32
LINEARS = ("wqkv.weight", "wo.weight", "w1.weight", "w2.weight", "w3.weight")
IGNORED = ["re:vit\\..*", "re:.*Plora_[AB]$", "re:vision_proj\\..*", "output"]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the position of each nibble in AWQ's 32-bit words
Quantised = tuple[dict[str, Tensor], Tensor]
"""The tensors that replace a weight, by suffix, and the weight that they stand for."""


def pack(values: Tensor, order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """Pack values 0..15 [rows, columns] into int32 [rows, columns / 8]."""
    words = values.to(torch.int64).view(len(values), -1, 8)
    packed = sum(words[:, :, source] << (4 * position) for position, source in enumerate(order))
    return torch.as_tensor(packed).to(torch.int32)


def groups_of(weight: Tensor) -> Tensor:
    return weight.view(len(weight), -1, GROUP)  # [out, groups, GROUP]


def four_bits(weight: Tensor) -> Quantised:
    """compressed-tensors, `pack-quantized`, symmetric, with groups of `GROUP` inputs."""
    scale = (groups_of(weight).abs().amax(2, keepdim=True) / 7).bfloat16()
    levels = (groups_of(weight) / scale).round().clamp(-8, 7)
    tensors = {
        "weight_packed": pack((levels + 8).flatten(1)),
        "weight_scale": scale.squeeze(2).clone(),
        "weight_shape": torch.tensor(weight.shape),
    }
    return tensors, (levels * scale).flatten(1)


def awq(weight: Tensor) -> Quantised:
    """AWQ with zero points."""
    grouped = groups_of(weight)
    low, high = grouped.amin(2, keepdim=True), grouped.amax(2, keepdim=True)
    scale = ((high - low) / 15).half()
    zero = (-low / scale).round().clamp(0, 15)
    levels = (grouped / scale + zero).round().clamp(0, 15)
    tensors = {
        "qweight": pack(levels.flatten(1).T.contiguous(), AWQ_ORDER),
        "qzeros": pack(zero.squeeze(2).T.contiguous(), AWQ_ORDER),
        "scales": scale.squeeze(2).T.contiguous(),
    }
    return tensors, ((levels - zero) * scale).flatten(1)


def eight_bits(weight: Tensor) -> Quantised:
    """compressed-tensors, `float-quantized`, with one scale per weight."""
    scale = weight.abs().max() / torch.finfo(torch.float8_e4m3fn).max
    values = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": values, "weight_scale": scale.view(1)}, values.float() * scale


def compressed(weights: dict[str, object], kind: str, inputs: dict[str, object] | None) -> dict[str, object]:
    """Return the `quantization_config` of compressed-tensors."""
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "ignore": IGNORED,
        "config_groups": {"group_0": group},
        "quantization_status": "compressed",
    }


_INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP, "dynamic": False}
_FP8 = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}
CONFIGS: dict[str, dict[str, object]] = {
    "four-bits": compressed(_INT4, "pack-quantized", None),
    "eight-bits": compressed(_FP8, "float-quantized", {**_FP8, "dynamic": True}),
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
}
FORMATS: dict[str, Callable[[Tensor], Quantised]] = {"four-bits": four_bits, "eight-bits": eight_bits, "awq": awq}


def quantise(tensors: dict[str, Tensor], kind: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors of the quantised checkpoint, and the same checkpoint with the values they stand for."""
    quantised, meant = {}, dict(tensors)
    for name, tensor in tensors.items():
        if name.endswith(LINEARS):
            parts, meant[name] = FORMATS[kind](tensor)
            quantised |= {f"{name.removesuffix('weight')}{suffix}": part for suffix, part in parts.items()}
        else:
            quantised[name] = tensor
    return quantised, meant
