"""Frames -> one feature vector each, by which keyframes are told apart.

The feature is the CLS token of CLIP's image encoder, last hidden state before the post-norm: the ShareGPT4Video paper's
choice. A checkpoint may name a smaller encoder of the same kind. Preprocessing follows its preprocessor_config.json.
"""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from PIL import Image
from transformers import CLIPVisionModel
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from workers.models.engine import Features

MAX_BATCH = 32
PREPROCESSOR = "preprocessor_config.json"


class Preprocessor:
    """What preprocessor_config.json says: resize, centre crop, scale to 0..1, normalise."""

    def __init__(self, config: dict[str, Any]) -> None:
        size, crop = config["size"], config.get("crop_size") if config.get("do_center_crop", True) else None
        self.shortest = size if isinstance(size, int) else size.get("shortest_edge")
        self.exact = None if self.shortest else (size["width"], size["height"])
        self.crop = (crop, crop) if isinstance(crop, int) else (crop["width"], crop["height"]) if crop else None
        self.resample = Image.Resampling(config.get("resample", Image.Resampling.BICUBIC))
        self.mean = np.asarray(config["image_mean"], np.float32)
        self.std = np.asarray(config["image_std"], np.float32)

    def __call__(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """Return float32 [3, height, width]."""
        width, height = image.size
        if self.shortest:
            short, long = min(width, height), max(width, height)
            other = int(self.shortest * long / short)
            target = (self.shortest, other) if width <= height else (other, self.shortest)
        else:
            assert self.exact is not None
            target = self.exact
        image = image.resize(target, self.resample)
        if self.crop:
            left, top = ((have - want) // 2 for have, want in zip(image.size, self.crop, strict=True))
            image = image.crop((left, top, left + self.crop[0], top + self.crop[1]))
        pixels = np.asarray(image, np.float32) / np.float32(255)
        normal: npt.NDArray[np.float32] = (pixels - self.mean) / self.std
        return normal.transpose(2, 0, 1)


class ClipEncoder:
    """CLIP's image encoder; frames that several jobs ask for at the same time go through it together."""

    def __init__(self, checkpoint: str, name: str) -> None:
        """Load the encoder `name`: a directory within `checkpoint` (itself a directory or a hub id), or a hub id."""
        directory = _directory(*((checkpoint, name) if _lies_within(checkpoint, name) else (name, "")))
        self._preprocess = Preprocessor(json.loads((directory / PREPROCESSOR).read_text()))
        gpu = torch.cuda.is_available()
        self._model = _vision_tower(directory, torch.float16 if gpu else torch.float32).to("cuda" if gpu else "cpu")
        self._waiting: list[tuple[Image.Image, asyncio.Future[Features]]] = []
        self._batches: asyncio.Task[None] | None = None

    async def encode(self, images: Sequence[Image.Image]) -> Features:
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Features]] = [loop.create_future() for _ in images]
        self._waiting += zip(images, futures, strict=True)
        if self._batches is None:
            self._batches = loop.create_task(self._run())
        return np.stack(await asyncio.gather(*futures))

    async def _run(self) -> None:
        """Encode what waits, batch after batch, until nothing does."""
        try:
            while batch := self._next_batch():
                try:
                    features = await asyncio.to_thread(self._forward, [image for image, _ in batch])
                    for (_, future), feature in zip(batch, features, strict=True):
                        if not future.done():
                            future.set_result(feature)
                except Exception as error:  # the jobs that asked are to know, whatever it was
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(error)
        finally:
            self._batches = None

    def _next_batch(self) -> list[tuple[Image.Image, asyncio.Future[Features]]]:
        waiting = [(image, future) for image, future in self._waiting if not future.done()]  # the rest was cancelled
        self._waiting = waiting[MAX_BATCH:]
        return waiting[:MAX_BATCH]

    @torch.inference_mode()
    def _forward(self, images: list[Image.Image]) -> Features:
        pixels = torch.from_numpy(np.stack([self._preprocess(image) for image in images]))  # [n, 3, height, width]
        states = self._model(pixels.to(self._model.device, self._model.dtype)).last_hidden_state  # [n, 1 + patches, d]
        features: Features = torch.nn.functional.normalize(states[:, 0].float(), dim=-1).cpu().numpy()
        return features


def _vision_tower(directory: Path, dtype: torch.dtype) -> Any:
    """Load CLIP's vision tower from its own checkpoint or from one of the whole of CLIP; raise ValueError."""
    disable_progress_bar()  # type: ignore[no-untyped-call]
    set_verbosity_error()  # type: ignore[no-untyped-call]
    found: Any = CLIPVisionModel.from_pretrained(
        directory, dtype=dtype, trust_remote_code=False, output_loading_info=True
    )
    model, loading = found
    wrong = [*loading["missing_keys"], *loading["mismatched_keys"], *loading["error_msgs"]]
    if wrong:  # transformers would go on with random weights
        raise ValueError(f"{directory} is no CLIP image encoder: {', '.join(map(str, wrong[:3]))}")
    return model.eval()


def _lies_within(checkpoint: str, name: str) -> bool:
    return Path(checkpoint, name).is_dir() if Path(checkpoint).is_dir() else "/" not in name


def _directory(place: str, folder: str) -> Path:
    """Return where the encoder's files lie, fetched from the hub where `place` is no directory."""
    if Path(place).is_dir():
        return Path(place, folder)
    subfolder = folder or None
    for name in ("config.json", PREPROCESSOR):
        hf_hub_download(place, name, subfolder=subfolder)
    try:
        return Path(hf_hub_download(place, "model.safetensors", subfolder=subfolder)).parent
    except EntryNotFoundError:
        return Path(hf_hub_download(place, "pytorch_model.bin", subfolder=subfolder)).parent
