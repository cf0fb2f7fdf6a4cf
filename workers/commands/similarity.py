"""The filter of `sharecap dedupe`: the cosine between captions, and a pool of those that are kept."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from service.contract.model_hub import OFFLINE, check_hub, is_hub_id

MAX_TOKENS = 512
BATCH = 64
CHUNK = 16384
"""Number of kept captions that a block is compared with at once. The cosines take block * CHUNK * 4 bytes."""
DIGITS = 5
"""Cosines are rounded before comparison: in float32, the cosine of two equal captions may be 0.9999999."""

Flags = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]
Cosines = npt.NDArray[np.float64]


class Pool:
    """The features of all kept captions, in float32. Allocates whole chunks of `chunk` features."""

    def __init__(self, threshold: float, device: str = "cpu", chunk: int = CHUNK) -> None:
        self.size = 0
        self._threshold, self._device, self._chunk = threshold, device, chunk
        self._chunks: list[torch.Tensor] = []  # [chunk, width] each; the last one is partly filled

    def admit(self, features: torch.Tensor) -> tuple[Flags, Indices, Cosines]:
        """Filter a block of features [n, width] in order, and add the kept ones to the pool.

        Returns for each row: whether it is kept; the index in the pool of the most similar feature kept before it, or
        -1; and their cosine, or -inf. Raises ValueError for a feature that is zero or not finite.
        """
        features = torch.nn.functional.normalize(features.to(self._device, torch.float32), dim=-1)
        cosines, indices = self._nearest(features)
        block_cosines = _rounded(features @ features.T)  # [n, n]
        if not np.allclose(np.diag(block_cosines), 1):
            raise ValueError("the encoder returned a feature that is zero or not finite")
        kept = np.zeros(len(features), np.bool_)
        next_index = self.size
        for row in range(len(features)):
            if cosines[row] < self._threshold:
                kept[row] = True
                later = slice(row + 1, None)
                closer = block_cosines[row, later] > cosines[later]
                cosines[later][closer] = block_cosines[row, later][closer]
                indices[later][closer] = next_index
                next_index += 1
        self.add(features[torch.from_numpy(kept).to(self._device)])
        return kept, indices, cosines

    def _nearest(self, features: torch.Tensor) -> tuple[Cosines, Indices]:
        """Return each row's largest cosine with the pool, and the index of that feature."""
        cosines = np.full(len(features), -math.inf)
        indices = np.full(len(features), -1, np.int64)
        for number, chunk in enumerate(self._chunks):
            start = number * self._chunk
            products = features @ chunk[: self.size - start].T  # [n, chunk]
            largest = products.argmax(1, keepdim=True)  # [n, 1]
            values = _rounded(products.gather(1, largest).squeeze(1))
            closer = values > cosines
            cosines[closer] = values[closer]
            indices[closer] = start + largest.squeeze(1).cpu().numpy()[closer]
        return cosines, indices

    def add(self, features: torch.Tensor) -> None:
        """Add features of length 1, [n, width], to the pool without filtering."""
        while len(features):
            start = self.size % self._chunk
            if start == 0:
                self._chunks.append(features.new_empty(self._chunk, features.shape[1]))
            part = features[: self._chunk - start]
            self._chunks[-1][start : start + len(part)] = part
            self.size += len(part)
            features = features[len(part) :]


def _rounded(values: torch.Tensor) -> Cosines:
    return values.double().round(decimals=DIGITS).cpu().numpy()


class CaptionEncoder:
    """Computes the CLS token of an encoder's last layer for each text, in float32."""

    def __init__(self, name: str, device: str) -> None:
        """Load `name`, a directory or hub id.

        Raises OSError or ModelUnavailable if it is missing, ValueError if it has no CLS token.
        """
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        # without this check, the hub's library would try for half a minute before it reports a missing network
        source: dict[str, Any] = {
            "trust_remote_code": False,
            "local_files_only": is_hub_id(name) and check_hub(name) == OFFLINE,
        }
        model: Any = AutoModel.from_pretrained(name, dtype=torch.float32, **source)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(name, padding_side="right", **source)
        if self._tokenizer.cls_token_id is None or self._tokenizer("").input_ids[:1] != [self._tokenizer.cls_token_id]:
            raise ValueError(f"{name} is not an encoder like BERT: its texts do not begin with a CLS token")
        self._model = model.eval().to(device)
        room = getattr(model.config, "max_position_embeddings", MAX_TOKENS)
        self._max_tokens = min(self._tokenizer.model_max_length, room, MAX_TOKENS)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """Return float32 [texts, width]. Texts are truncated to the encoder's maximum length."""
        ids = self._tokenizer(list(texts), truncation=True, max_length=self._max_tokens).input_ids
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))  # similar lengths need little padding
        features = [torch.empty(0)] * len(ids)
        for start in range(0, len(order), BATCH):
            indices = order[start : start + BATCH]
            batch = self._tokenizer.pad({"input_ids": [ids[index] for index in indices]}, return_tensors="pt")
            states = self._model(**batch.to(self._model.device)).last_hidden_state  # [batch, tokens, width]
            for index, feature in zip(indices, states[:, 0], strict=True):
                features[index] = feature
        return torch.stack(features)


class CaptionFilter:
    """Keeps a caption if its cosine with all captions kept before it is below `threshold`."""

    def __init__(self, encoder: str, threshold: float) -> None:
        """Load the encoder, on a GPU if there is one. Raises what `CaptionEncoder` raises."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._encoder, self._pool = CaptionEncoder(encoder, device), Pool(threshold, device)

    @property
    def kept(self) -> int:
        """The number of captions kept so far."""
        return self._pool.size

    def admit(self, captions: Sequence[str]) -> tuple[list[bool], list[int], list[float]]:
        """Filter captions in order. Returns what `Pool.admit` returns, as lists."""
        kept, indices, cosines = self._pool.admit(self._encoder.encode(captions))
        return kept.tolist(), indices.tolist(), cosines.tolist()
