"""Auxiliary heads of the fast role, which are not exported.

After each of the first two new layers, the last token of a frame's crop should know the frame's number, look and place,
and after the second what has changed. After the third, every token of an answer should know what the frame that it
refers to shows, and what has changed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workers.demo.training.batches import IGNORE, Batch
from workers.demo.training.data import SINGLE
from workers.demo.training.fast.cells import ColumnBatch
from workers.demo.training.heads import NO_COLOUR, NO_SHAPE, normed_linear, place_loss
from workers.demo.training.model import Sizes, Tokens
from workers.demo.world import BACKGROUNDS

MAX_FRAMES = 16
PLACE_WEIGHT, CHANGE_WEIGHT = 100.0, 2.0


class FrameHeads(nn.Module):
    """Number, look and place of a frame."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.number = normed_linear(width, MAX_FRAMES + 1)
        self.shape = normed_linear(width, NO_SHAPE + 1)
        self.colour = normed_linear(width, NO_COLOUR + 1)
        self.background = normed_linear(width, len(BACKGROUNDS))
        self.place = normed_linear(width, 3)

    def look_loss(self, tokens: Tensor, states: Tensor) -> Tensor:
        """Return the loss of the look that `tokens` `[..., width]` should know; `states` is `[..., 10]`."""
        present = states[..., 6] > 0
        targets = (
            (self.shape, states[..., 0].long()),
            (self.colour, torch.where(present, states[..., 1].long(), NO_COLOUR)),
            (self.background, states[..., 2].long()),
        )
        return sum(
            (F.cross_entropy(head(tokens).flatten(0, -2), target.flatten()) for head, target in targets),
            torch.zeros(()),
        )

    def loss(self, ends: Tensor, states: Tensor) -> Tensor:
        """Return the sum of all losses. `ends` is `[batch, frames, width]`, `states` `[batch, frames, 10]`."""
        batch, frames, _ = ends.shape
        places = self.place(ends).flatten(0, 1), states[..., 3:6].flatten(0, 1), (states[..., 6] > 0).flatten()
        numbers = torch.arange(1, frames + 1).repeat(batch)
        number = F.cross_entropy(self.number(ends).flatten(0, 1), numbers)
        return self.look_loss(ends, states) + number + PLACE_WEIGHT * place_loss(*places)


class ColumnHeads(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.merged_side = sizes.grid // 2
        self.frames = nn.ModuleList(FrameHeads(sizes.hidden) for _ in range(2))
        self.change = normed_linear(sizes.hidden, SINGLE + 1)
        self.text_look = FrameHeads(sizes.hidden)
        self.text_change = normed_linear(sizes.hidden, SINGLE + 1)

    def crop_ends(self, image: Tensor, frames: int) -> Tensor:
        """Return the separator that ends each frame's crop: `[batch, frames, hidden]` of `[batch, tokens, hidden]`."""
        m = self.merged_side
        crops = image[:, m * (m + 1) + 1 :]  # after the global view and its separator
        return crops.view(len(image), frames, m * (m + 1), -1)[:, :, -1].float()

    def loss(self, outputs: list[Tokens], columns: ColumnBatch) -> tuple[Tensor, float]:
        """Return the sum of all losses, and the share of frames with the right change.

        `outputs` are those of the first two new layers.
        """
        total = torch.zeros(())
        frames = columns.kinds.shape[1]
        for output, heads in zip(outputs, self.frames, strict=False):
            assert output.image is not None and isinstance(heads, FrameHeads)
            ends = self.crop_ends(output.image, frames)
            total = total + heads.loss(ends, columns.states)
        change = self.change(ends)
        accuracy = (change.argmax(-1) == columns.kinds).float().mean().item()
        return total + CHANGE_WEIGHT * F.cross_entropy(change.flatten(0, 1), columns.kinds.flatten()), accuracy

    def text_loss(self, text: Tensor, turns: Batch, columns: ColumnBatch) -> tuple[Tensor, float]:
        """Return the loss of what the tokens of answers should know, and the share of right changes.

        `text` is `[batch, length, hidden]`.
        """
        known = turns.numbers != IGNORE
        frames = turns.numbers.clamp(1, columns.kinds.shape[1]) - 1
        states = columns.states.take_along_dim(frames[..., None], 1)[known]
        kinds, tokens = columns.kinds.take_along_dim(frames, 1)[known], text[known].float()
        change = self.text_change(tokens)
        accuracy = (change.argmax(-1) == kinds).float().mean().item()
        return self.text_look.look_loss(tokens, states) + CHANGE_WEIGHT * F.cross_entropy(change, kinds), accuracy
