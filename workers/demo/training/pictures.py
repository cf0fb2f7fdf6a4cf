"""Shards of `data.py` -> batches: pixels as the plugin normalises them, with what they show.

What is drawn for training is flipped left-right half of the time, and so is what it shows.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from workers.demo.training.data import SINGLE
from workers.demo.world import CHANGES
from workers.xcomposer2.image import CLIP_MEAN, CLIP_STD

GEOMETRIC = ("left", "right", "up", "down", "grow", "shrink")
MIRRORED = list(range(SINGLE + 1))  # `kind` after a left-right flip
MIRRORED[CHANGES.index("left")], MIRRORED[CHANGES.index("right")] = CHANGES.index("right"), CHANGES.index("left")


class Pictures:
    """All shards of a folder in memory; new ones are taken up by `refresh`."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder, self.rng = folder, np.random.default_rng(seed)
        self.crops: list[npt.NDArray[np.uint8]] = []
        self.kinds, self.states = np.zeros(0, np.int64), np.zeros((0, 2, 7), np.float32)
        self.owner = np.zeros((0, 2), np.int64)  # (shard, place in it) of each picture
        self.read: set[Path] = set()
        self.refresh()

    def refresh(self) -> None:
        for path in sorted(set(self.folder.glob("*.npz")) - self.read):
            shard = np.load(path)
            count = len(shard["kind"])
            owner = np.stack([np.full(count, len(self.crops)), np.arange(count)], 1)
            self.crops.append(shard["crops"])
            self.kinds = np.concatenate([self.kinds, shard["kind"]])
            self.states = np.concatenate([self.states, shard["states"]])
            self.owner = np.concatenate([self.owner, owner])
            self.read.add(path)

    def __len__(self) -> int:
        return len(self.kinds)

    def take(self, index: npt.NDArray[np.int64], flip: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return pixels `[n, 3, side, side]`, kinds `[n]`, states `[n, 2, 7]`; half of them flipped left-right."""
        crops = np.stack([self.crops[shard][place] for shard, place in self.owner[index]])
        kinds, states = self.kinds[index].copy(), self.states[index].copy()
        if flip:
            which = self.rng.random(len(index)) < 0.5
            crops[which] = crops[which][:, :, ::-1]
            kinds[which] = np.array(MIRRORED)[kinds[which]]
            states[which, :, 3] = 1 - states[which, :, 3]
        return normalised(torch.from_numpy(crops)), torch.from_numpy(kinds), torch.from_numpy(states)

    def draw_kinds(self, pairs: int, singles: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return `pairs` pictures of two frames, a fifth of them still, then `singles` of one, as `take` does.

        A fifth: the last sample of a clip is always a keyframe, and mostly nothing changed since the one before.
        A quarter changes otherwise than in place and size, which is easily learned.
        """
        still, single = self.kinds == CHANGES.index("none"), self.kinds == SINGLE
        moved = np.isin(self.kinds, [CHANGES.index(kind) for kind in GEOMETRIC])
        others = ~(still | single | moved)
        moves = pairs - pairs // 5 - pairs // 4
        counts = ((moved, moves), (others, pairs // 4), (still, pairs // 5), (single, singles))
        index = np.concatenate([self.rng.choice(np.flatnonzero(which), count) for which, count in counts])
        return self.take(index, flip=True)


def normalised(crops: Tensor) -> Tensor:
    """`[n, side, side, 3]` uint8 -> `[n, 3, side, side]` as the plugin's `image.py` makes it."""
    mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
    return ((crops.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
