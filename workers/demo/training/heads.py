"""Auxiliary heads: what image tokens, and the lower half of the language model, should tell. Thrown away afterwards.

Per picture, by one attention pooling each: what changed, and of both frames shape, colour, background, place. Per
patch: shape and colour of what covers it, which is by far the quickest teacher of shape. Per image token: what changed;
a language model finds what every token says at once, and what one certain token says only after long training. What
`last`, `frame` and `before` are asked stands in train.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workers.demo.training.data import SINGLE
from workers.demo.training.model import Sizes
from workers.demo.world import BACKGROUNDS, COLOURS, SHAPES

TASKS = {
    "kind": SINGLE + 1,
    "shape_a": len(SHAPES) + 1,
    "colour_a": len(COLOURS) + 1,
    "background_a": len(BACKGROUNDS),
    "place_a": 3,
    "shape_b": len(SHAPES) + 1,
    "colour_b": len(COLOURS) + 1,
    "background_b": len(BACKGROUNDS),
    "place_b": 3,
}
MOST_FRAMES = 15
EVERYWHERE = 3.0  # weight of what changed, told by each image token
NO_SHAPE, NO_COLOUR = len(SHAPES), len(COLOURS)


class Heads(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.grid = sizes.grid
        self.norm = nn.RMSNorm(sizes.hidden)
        self.queries = nn.Parameter(torch.zeros(len(TASKS), sizes.hidden))
        self.position = nn.Parameter(torch.zeros(len(TASKS), (sizes.grid // 2) ** 2))
        self.heads = nn.ModuleList(nn.Linear(sizes.hidden, classes) for classes in TASKS.values())
        self.everywhere = nn.Linear(sizes.hidden, SINGLE + 1)
        self.last = nn.Sequential(nn.RMSNorm(sizes.hidden), nn.Linear(sizes.hidden, SINGLE + 1))
        self.frame = nn.Sequential(nn.RMSNorm(sizes.hidden), nn.Linear(sizes.hidden, MOST_FRAMES + 1))
        self.before = nn.Sequential(nn.RMSNorm(sizes.hidden), nn.Linear(sizes.hidden, sizes.vocabulary))
        self.dense = nn.Linear(sizes.vision_hidden, len(SHAPES) + 1 + len(COLOURS) + 1)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """Projected tokens `[batch, m², hidden]` -> answers of each task `[batch, classes]`."""
        x = self.norm(tokens)
        weights = (torch.einsum("bnd,td->btn", x, self.queries) + self.position).softmax(-1)
        pooled = weights @ x  # [batch, tasks, hidden]
        return {task: head(pooled[:, t]) for t, (task, head) in enumerate(zip(TASKS, self.heads, strict=True))}

    def patch_labels(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """`[batch, 2, 7]` -> shape and colour `[batch, grid²]` of what covers each patch's middle."""
        along = (torch.arange(self.grid, device=states.device) + 0.5) / self.grid
        x, y = along.repeat(self.grid), along.repeat_interleave(self.grid)
        distance = ((x - states[:, :, 3:4]) ** 2 + (y - states[:, :, 4:5]) ** 2).sqrt()  # [batch, 2, grid²]
        covered = (distance < states[:, :, 5:6]) & (states[:, :, 6:7] > 0)
        shape = torch.full_like(distance[:, 0], NO_SHAPE)
        colour = torch.full_like(distance[:, 0], NO_COLOUR)
        for frame in (0, 1):
            shape = torch.where(covered[:, frame], states[:, frame, 0:1], shape)
            colour = torch.where(covered[:, frame], states[:, frame, 1:2], colour)
        return shape.long(), colour.long()

    def loss(self, patches: Tensor, tokens: Tensor, kind: Tensor, states: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return the sum of all tasks' losses and each task's share of right answers."""
        answers = self(tokens)
        right, total = {}, torch.zeros((), device=tokens.device)
        for task, answer in answers.items():
            frame = states[:, 1 if task.endswith("_b") else 0]
            there = frame[:, 6] > 0
            if task.startswith("place"):
                total = total + 10 * (F.mse_loss(answer, frame[:, 3:6], reduction="none").mean(1) * there).mean()
                continue
            if task == "kind":
                target = kind
            elif task.startswith("shape"):
                target = frame[:, 0].long()
            elif task.startswith("colour"):
                target = torch.where(there, frame[:, 1].long(), NO_COLOUR)
            else:
                target = frame[:, 2].long()
            total = total + F.cross_entropy(answer, target)
            right[task] = (answer.argmax(-1) == target).float().mean().item()
        everywhere = self.everywhere(self.norm(tokens))  # [batch, m², kinds]
        repeated = kind[:, None].expand(everywhere.shape[:2])
        total = total + EVERYWHERE * F.cross_entropy(everywhere.flatten(0, 1), repeated.flatten())
        right["kind_everywhere"] = (everywhere.argmax(-1) == repeated).float().mean().item()
        dense = self.dense(patches)
        shape, colour = self.patch_labels(states)
        split = len(SHAPES) + 1
        total = total + 2 * F.cross_entropy(dense[..., :split].flatten(0, 1), shape.flatten())
        total = total + 2 * F.cross_entropy(dense[..., split:].flatten(0, 1), colour.flatten())
        return total, right
