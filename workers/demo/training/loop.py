"""The training run: its saved state, its optimiser steps, and averaging over its processes."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]

from workers.demo.training.model import DemoModel
from workers.demo.training.optimisers import ADAM_LR, MUON_LR, schedule

PHASES = ("vision", "text", "joint")
# factors of the learning rates in each phase; the last two are those of the fast role's training
VISION_RATES = {"vision": 1.0, "text": 0.7, "joint": 0.3, "frames": 1.0, "captions": 1.0}  # tower, projection, heads
LANGUAGE_RATES = {"vision": 0.0, "text": 0.7, "joint": 0.4, "frames": 1.0, "captions": 1.0}


HeadsT = TypeVar("HeadsT", bound=nn.Module)


@dataclass
class TrainingRun(Generic[HeadsT]):
    """Everything that is saved and restored."""

    model: DemoModel
    heads: HeadsT
    optimisers: list[torch.optim.Optimizer]
    out: Path
    phase: str = PHASES[0]
    step: int = 0
    seconds: float = 0.0  # of CPU time, spent in this phase
    rate: float = 1.0  # factor of all learning rates; below 1 for weights that are already trained

    def save(self) -> None:
        if rank() > 0:
            return
        optimisers = [optimiser.state_dict() for optimiser in self.optimisers]
        state = {"model": self.model.state_dict(), "heads": self.heads.state_dict(), "optimisers": optimisers}
        torch.save(state | {"phase": self.phase, "step": self.step, "seconds": self.seconds}, self.out / "state.tmp")
        (self.out / "state.tmp").rename(self.out / "state.pt")

    def load(self) -> None:
        """Restore the saved state, if there is one."""
        path = self.out / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.phase, self.step, self.seconds = state["phase"], state["step"], state["seconds"]

    def enter(self, phase: str) -> None:
        """Start a phase, unless the restored state is already in it."""
        if phase != self.phase:
            self.phase, self.step, self.seconds = phase, 0, 0.0

    def log(self, **figures: Any) -> None:
        line = {"phase": self.phase, "step": self.step, "seconds": round(self.seconds)} | figures
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        tqdm.write(json.dumps(line))

    def steps(self, budget_s: float) -> Iterator[None]:
        """Yield once per optimiser step until the phase has used `budget_s` of CPU time.

        The caller computes the gradients.
        """
        bar = tqdm(desc=self.phase, initial=self.step, unit="step", mininterval=10, disable=rank() > 0)
        started = time.process_time()
        while self.seconds < budget_s:
            self.set_rates(self.rate * schedule(self.step, self.seconds / budget_s))
            yield
            now = time.process_time()
            self.seconds, started = self.average_gradients(self.seconds + now - started), now
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
            for optimiser in self.optimisers:
                optimiser.step()
            self.step += 1
            bar.update()
        bar.close()

    def set_rates(self, factor: float) -> None:
        """Set all learning rates for the next step, and clear the gradients."""
        for optimiser, base in zip(self.optimisers, (MUON_LR, ADAM_LR), strict=True):
            for group in optimiser.param_groups:
                rates = VISION_RATES if group["vision"] else LANGUAGE_RATES
                group["lr"] = base * factor * rates[self.phase] * group.get("factor", 1.0)
            optimiser.zero_grad(set_to_none=True)

    def average_gradients(self, seconds: float) -> float:
        """Average the gradients over all processes of the run. Returns the average of their `seconds`."""
        if not dist.is_initialized():
            return seconds
        parameters = [p for p in (*self.model.parameters(), *self.heads.parameters()) if p.grad is not None]
        gradients = [p.grad.flatten() for p in parameters if p.grad is not None]
        shared = torch.cat([*gradients, torch.tensor([seconds])])
        dist.all_reduce(shared)
        sizes = [*(p.numel() for p in parameters), 1]
        *means, mean_s = torch.split_with_sizes(shared / dist.get_world_size(), sizes)
        for parameter, mean in zip(parameters, means, strict=True):
            parameter.grad = mean.view_as(parameter)
        return float(mean_s)


def rank() -> int:
    """Return the index of this process. Only process 0 saves, evaluates and reports."""
    return dist.get_rank() if dist.is_initialized() else 0


class Clock:
    """Reports when a repeated action is due."""

    def __init__(self, interval_s: float) -> None:
        self.interval_s, self.last = interval_s, time.monotonic()

    def due(self) -> bool:
        if time.monotonic() - self.last < self.interval_s:
            return False
        self.last = time.monotonic()
        return True
