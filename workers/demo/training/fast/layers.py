"""New decoder layers that change nothing for text: only image tokens, and what text reads from image tokens.

In a new layer a text token's value is zero and its feed-forward output is zero; partial LoRA gives image tokens both.
So prompts without an image are answered exactly as before, whatever the new layers learn.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from workers.demo.training.model import Attention, DecoderLayer, DemoModel
from workers.demo.training.optimisers import ADAM_LR, MUON_LR, Muon

NEW_LAYERS = (0, 1, 4, 7)  # indices in the larger model
COMPARING = 2  # so many of them compare frames, and leave text alone; in the others text reads the result
READING = NEW_LAYERS[COMPARING]  # index of the first of these
RANK = 32  # of partial LoRA, in all layers
VALUE_STD = 0.15  # of the LoRA's value rows; if values and outputs both started at zero, neither would learn
OUTPUT_SCALE, OUTPUT_RATE = 8.0, 30.0  # tokens are large here, so what a new layer adds must grow quickly


def value_rows(attention: Attention, weight: Tensor) -> Tensor:
    """Return the view of `wqkv`'s weight that computes values: `[kv_heads, head_dim, hidden]`."""
    group = attention.heads // attention.kv_heads
    return weight.view(attention.kv_heads, group + 2, attention.head_dim, -1)[:, -1]


def extended(model: DemoModel, places: Sequence[int] = NEW_LAYERS) -> DemoModel:
    """Return a copy of `model` with new layers at these indices, which change nothing yet, and a larger LoRA rank."""
    old = model.sizes
    scale, wqkv_scale = old.plora_alpha // old.plora_r, old.plora_wqkv_alpha // old.plora_wqkv_r
    sizes = replace(
        old, layers=old.layers + len(places), plora_r=RANK, plora_alpha=RANK * scale,
        plora_wqkv_r=RANK, plora_wqkv_alpha=RANK * wqkv_scale,
    )  # fmt: skip
    larger = DemoModel(sizes)
    old_places = [index for index in range(sizes.layers) if index not in places]
    state = larger.state_dict()
    for name, tensor in model.state_dict().items():
        match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
        target = state[f"model.layers.{old_places[int(match[1])]}.{match[2]}" if match else name]
        target.zero_()
        target[tuple(slice(size) for size in tensor.shape)] = tensor  # the added LoRA rows are zero
    larger.load_state_dict(state)
    for index, layer in enumerate(new_layers(larger, places)):
        start_as_identity(layer)
        layer.fed = (True,) if index < COMPARING else ()
    return larger


def new_layers(model: DemoModel, places: Sequence[int] = NEW_LAYERS) -> list[DecoderLayer]:
    layers = [layer for index, layer in enumerate(model.model.layers) if index in places]
    return [layer for layer in layers if isinstance(layer, DecoderLayer)]


@torch.no_grad()
def start_as_identity(layer: DecoderLayer) -> None:
    nn.init.zeros_(layer.attention.wo.weight)
    nn.init.zeros_(layer.feed_forward.w2.weight)
    value_rows(layer.attention, layer.attention.wqkv.weight).zero_()
    nn.init.normal_(value_rows(layer.attention, layer.attention.wqkv.Plora_B.weight), std=VALUE_STD)
    for output in (layer.attention.wo, layer.feed_forward.w2):
        output.Plora_A.weight.mul_(OUTPUT_SCALE)


def train_only(model: DemoModel, layers: Sequence[DecoderLayer]) -> list[nn.Parameter]:
    """Freeze everything except `layers`, and there the weights that must stay zero. Returns the trained parameters."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for layer in layers:
        for parameter in layer.parameters():
            parameter.requires_grad_(True)
        for parameter in (*layer.ffn_norm.parameters(), *layer.feed_forward.parameters()):
            parameter.requires_grad_(True in layer.fed)
        layer.feed_forward.w2.weight.requires_grad_(False)
        layer.attention.wo.weight.requires_grad_(layer not in new_layers(model)[:COMPARING])
        mask = torch.ones_like(layer.attention.wqkv.weight)
        value_rows(layer.attention, mask).zero_()
        layer.attention.wqkv.weight.register_hook(mask.mul)  # type: ignore[no-untyped-call]
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def make_optimisers(layers: Sequence[DecoderLayer], heads: nn.Module) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of new layers, with a higher rate for their outputs, and AdamW for the rest."""
    outputs: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    trained = [p for layer in layers for p in layer.parameters() if p.requires_grad]
    named = [(name, p) for layer in layers for name, p in layer.named_parameters() if p.requires_grad and p.ndim == 2]
    for name, parameter in named:
        is_output = name in ("attention.wo.weight", "attention.wo.Plora_B.weight", "feed_forward.w2.Plora_B.weight")
        (outputs if is_output else matrices).append(parameter)
    others = [*(p for p in trained if p.ndim != 2), *heads.parameters()]
    muon = [{"params": matrices, "vision": False}, {"params": outputs, "vision": False, "factor": OUTPUT_RATE}]
    adam = torch.optim.AdamW([{"params": others, "vision": False}], lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.01)
    return [Muon(muon, lr=MUON_LR), adam]
