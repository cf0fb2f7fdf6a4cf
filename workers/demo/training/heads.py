"""Auxiliary heads: they train what patches, image tokens and the language model's lower half contain. Not exported.

- `PictureHeads` predict from one crop: what changed, with shape, colour, background and place in both frames (attention
  pooling), the shape and colour that cover each patch, and what changed (each image token).
- `TextHeads` predict from the middle layer: what changed (last image token), and for each text token the previous token
  and the frame, or requested change, that it refers to.

The heads speed up training: patches teach shapes fastest, a language model finds what every token states sooner than
what one token states, and its upper half learns to copy one sentence from among many once the lower half knows the
previous token and the sentence.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workers.demo.training.batches import IGNORE, Batch
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
MAX_FRAMES = 15
EVERY_TOKEN_WEIGHT = 3.0  # of the change that each image token should state
PLACE_WEIGHT, PATCH_WEIGHT = 10.0, 2.0
NO_SHAPE, NO_COLOUR = len(SHAPES), len(COLOURS)


class PatchHead(nn.Module):
    """Shape and colour at each patch."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.linear = nn.Linear(sizes.vision_hidden, NO_SHAPE + 1 + NO_COLOUR + 1)

    def loss(self, patches: Tensor, shapes: Tensor, colours: Tensor) -> Tensor:
        """Return the cross entropy of `patches` `[..., d]` against `shapes` and `colours` `[...]`."""
        logits = self.linear(patches).flatten(0, -2)
        shape_logits, colour_logits = torch.split_with_sizes(logits, [NO_SHAPE + 1, NO_COLOUR + 1], -1)
        shape_loss = F.cross_entropy(shape_logits, shapes.flatten())
        return PATCH_WEIGHT * (shape_loss + F.cross_entropy(colour_logits, colours.flatten()))


class PictureHeads(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.grid = sizes.grid
        self.norm = nn.RMSNorm(sizes.hidden)
        self.queries = nn.Parameter(torch.zeros(len(TASKS), sizes.hidden))
        self.position = nn.Parameter(torch.zeros(len(TASKS), (sizes.grid // 2) ** 2))
        self.heads = nn.ModuleList(nn.Linear(sizes.hidden, classes) for classes in TASKS.values())
        self.every_token = nn.Linear(sizes.hidden, SINGLE + 1)
        self.patch = PatchHead(sizes)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """Map projected tokens `[batch, m², hidden]` to each task's output `[batch, classes]`."""
        x = self.norm(tokens)
        weights = (torch.einsum("bnd,td->btn", x, self.queries) + self.position).softmax(-1)
        pooled = weights @ x  # [batch, tasks, hidden]
        return {task: head(pooled[:, t]) for t, (task, head) in enumerate(zip(TASKS, self.heads, strict=True))}

    def patch_labels(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return shape and colour at each patch's centre, `[batch, grid²]` each, for `states` `[batch, 2, 7]`."""
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
        """Return the sum of all tasks' losses, and each task's accuracy."""
        accuracy, total = {}, self.patch.loss(patches, *self.patch_labels(states))
        for task, output in self(tokens).items():
            frame = states[:, 1 if task.endswith("_b") else 0]
            if task.startswith("place"):
                total = total + PLACE_WEIGHT * place_loss(output, frame[:, 3:6], frame[:, 6] > 0)
                continue
            target = class_of(task, kind, frame)
            total = total + F.cross_entropy(output, target)
            accuracy[task] = (output.argmax(-1) == target).float().mean().item()
        every_token = self.every_token(self.norm(tokens))  # [batch, m², kinds]
        repeated = kind[:, None].expand(every_token.shape[:2])
        total = total + EVERY_TOKEN_WEIGHT * F.cross_entropy(every_token.flatten(0, 1), repeated.flatten())
        accuracy["kind_every_token"] = (every_token.argmax(-1) == repeated).float().mean().item()
        return total, accuracy


def class_of(task: str, kind: Tensor, frame: Tensor) -> Tensor:
    """Return the class index that a task of `PictureHeads` should output; `frame` is `[batch, 7]`."""
    if task == "kind":
        return kind
    if task.startswith("shape"):
        return frame[:, 0].long()
    if task.startswith("colour"):
        return torch.where(frame[:, 6] > 0, frame[:, 1].long(), NO_COLOUR)
    return frame[:, 2].long()


def place_loss(output: Tensor, places: Tensor, present: Tensor) -> Tensor:
    """Return the mean squared error of x, y and radius `[n, 3]`, counting only present shapes."""
    return (F.mse_loss(output, places, reduction="none").mean(1) * present).mean()


class TextHeads(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.last_image_token = normed_linear(sizes.hidden, SINGLE + 1)
        self.number = normed_linear(sizes.hidden, MAX_FRAMES + 1)
        self.previous_token = normed_linear(sizes.hidden, sizes.vocabulary)

    def change_loss(self, image: Tensor, kinds: Tensor) -> Tensor:
        """Return the cross entropy of the change that the last token of `image` `[batch, n, hidden]` should state."""
        return F.cross_entropy(self.last_image_token(image[:, -1]), kinds)

    def reference_loss(self, text: Tensor, batch: Batch) -> Tensor:
        """Return the cross entropy of each token's number and previous token; `text` is `[batch, n, hidden]`."""
        number = F.cross_entropy(self.number(text).flatten(0, 1), batch.numbers.flatten(), ignore_index=IGNORE)
        previous = F.cross_entropy(self.previous_token(text[:, 1:]).flatten(0, 1), batch.ids[:, :-1].flatten())
        return number + previous


def normed_linear(width: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.RMSNorm(width), nn.Linear(width, classes))


class Heads(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.picture = PictureHeads(sizes)
        self.text = TextHeads(sizes)
