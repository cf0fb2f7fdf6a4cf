"""Optimisers and learning rates: Muon for the hidden matrices, AdamW for everything else.

Muon takes the nearest orthogonal matrix of the momentum update, after K. Jordan et al., "Muon: An optimizer for hidden
layers in neural networks" (2024); the quintic's coefficients are theirs. Matrices of one shape are orthogonalised
together in float32, which saves most of the cost on a CPU.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

QUINTIC = (3.4445, -4.7750, 2.0315)
MUON_LR, ADAM_LR = 0.02, 3e-3
WARMUP_STEPS = 100


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """Return approximately `U·Vᵀ` of each matrix of `[count, rows, columns]`, by Newton-Schulz iterations."""
    a, b, c = QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    nearest: Tensor = x.transpose(1, 2) if tall else x
    return nearest


class Muon(torch.optim.Optimizer):
    """For 2-D parameters only."""

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(list(groups), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                updates = torch.stack([self.nesterov(p, group["momentum"]) for p in parameters])
                lr = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for parameter, update in zip(parameters, orthogonalised(updates), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-lr)

    def nesterov(self, parameter: Tensor, momentum: float) -> Tensor:
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(buffer, momentum)


def make_optimisers(model: nn.Module, heads: nn.Module) -> list[torch.optim.Optimizer]:
    """Return Muon for the hidden matrices and AdamW for embeddings, norms, separators and heads.

    Groups with `vision` set hold the vision tower, the projection and the heads.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {
        (matrix, vision): [] for matrix in (True, False) for vision in (True, False)
    }
    groups[False, True] += heads.parameters()
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim == 2 and (".layers." in name or name.startswith("vision_proj"))
        groups[matrix, name.startswith("vi")].append(parameter)
    muon, adam = ([{"params": groups[m, v], "vision": v} for v in (True, False)] for m in (True, False))
    return [
        Muon(muon, lr=MUON_LR),
        torch.optim.AdamW(adam, lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
    ]


def schedule(step: int, done: float) -> float:
    """Return the factor of the learning rates: it rises over the first steps, then falls linearly to zero.

    `done` is the finished share of the phase.
    """
    return min(1.0, (step + 1) / WARMUP_STEPS) * max(0.0, 1 - done)
