"""Computes one feature vector for each frame. Keyframe selection compares them.

The feature is the CLS token of CLIP's image encoder (last hidden state, before the final norm), as in the
ShareGPT4Video paper. A checkpoint may name a smaller encoder of the same kind. Preprocessing follows the encoder's
preprocessor_config.json.
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
    """The preprocessing of preprocessor_config.json: resize, centre crop, scale to 0..1, normalise."""

    def __init__(self, config: dict[str, Any]) -> None:
        size = config["size"]
        self.shortest_px: int | None = size if isinstance(size, int) else size.get("shortest_edge")
        self.exact_size = None if self.shortest_px else (size["width"], size["height"])
        crop = config.get("crop_size") if config.get("do_center_crop", True) else None
        if isinstance(crop, int):
            crop = {"width": crop, "height": crop}
        self.crop_size = (crop["width"], crop["height"]) if crop else None
        self.resample = Image.Resampling(config.get("resample", Image.Resampling.BICUBIC))
        self.mean = np.asarray(config["image_mean"], np.float32)
        self.std = np.asarray(config["image_std"], np.float32)

    def __call__(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """Return float32 [3, height, width]."""
        image = image.resize(self._target_size(*image.size), self.resample)
        if self.crop_size:
            width, height = self.crop_size
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        pixels = np.asarray(image, np.float32) / np.float32(255)
        normal: npt.NDArray[np.float32] = (pixels - self.mean) / self.std
        return normal.transpose(2, 0, 1)

    def _target_size(self, width: int, height: int) -> tuple[int, int]:
        if self.exact_size:
            return self.exact_size
        assert self.shortest_px is not None
        longest_px = int(self.shortest_px * max(width, height) / min(width, height))
        return (self.shortest_px, longest_px) if width <= height else (longest_px, self.shortest_px)


class ClipEncoder:
    """CLIP's image encoder. Frames of concurrent jobs are encoded in common batches."""

    def __init__(self, checkpoint: str, name: str) -> None:
        """Load the encoder `name`: a directory inside `checkpoint` (a directory or hub id), or a hub id of its own."""
        directory = _directory(checkpoint, name) if _is_inside(checkpoint, name) else _directory(name, "")
        self._preprocess = Preprocessor(json.loads((directory / PREPROCESSOR).read_text()))
        gpu = torch.cuda.is_available()
        self._model = _vision_tower(directory, torch.float16 if gpu else torch.float32).to("cuda" if gpu else "cpu")
        self._waiting: list[tuple[Image.Image, asyncio.Future[Features]]] = []
        self._encoding: asyncio.Task[None] | None = None

    async def encode(self, images: Sequence[Image.Image]) -> Features:
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Features]] = [loop.create_future() for _ in images]
        self._waiting += zip(images, futures, strict=True)
        if self._encoding is None:
            self._encoding = loop.create_task(self._run())
        return np.stack(await asyncio.gather(*futures))

    async def _run(self) -> None:
        """Encode all waiting images, one batch at a time."""
        try:
            while batch := self._next_batch():
                try:
                    features = await asyncio.to_thread(self._forward, [image for image, _ in batch])
                    for (_, future), feature in zip(batch, features, strict=True):
                        if not future.done():
                            future.set_result(feature)
                except Exception as error:  # each waiting job receives the error
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(error)
        finally:
            self._encoding = None

    def _next_batch(self) -> list[tuple[Image.Image, asyncio.Future[Features]]]:
        waiting = [(image, future) for image, future in self._waiting if not future.done()]  # skips cancelled requests
        self._waiting = waiting[MAX_BATCH:]
        return waiting[:MAX_BATCH]

    @torch.inference_mode()
    def _forward(self, images: list[Image.Image]) -> Features:
        pixels = torch.from_numpy(np.stack([self._preprocess(image) for image in images]))  # [n, 3, height, width]
        states = self._model(pixels.to(self._model.device, self._model.dtype)).last_hidden_state  # [n, 1 + patches, d]
        features: Features = torch.nn.functional.normalize(states[:, 0].float(), dim=-1).cpu().numpy()
        return features


def _vision_tower(directory: Path, dtype: torch.dtype) -> Any:
    """Load CLIP's vision tower from its own or a complete CLIP checkpoint. Raises ValueError for any other."""
    disable_progress_bar()  # type: ignore[no-untyped-call]
    set_verbosity_error()  # type: ignore[no-untyped-call]
    loaded: Any = CLIPVisionModel.from_pretrained(
        directory, dtype=dtype, trust_remote_code=False, output_loading_info=True
    )
    model, loading = loaded
    wrong = [*loading["missing_keys"], *loading["mismatched_keys"], *loading["error_msgs"]]
    if wrong:  # transformers would continue with random weights
        raise ValueError(f"{directory} is not a CLIP image encoder: {', '.join(map(str, wrong[:3]))}")
    return model.eval()


def _is_inside(checkpoint: str, name: str) -> bool:
    return Path(checkpoint, name).is_dir() if Path(checkpoint).is_dir() else "/" not in name


def _directory(model: str, folder: str) -> Path:
    """Return the directory of the encoder's files: `folder` of `model`, downloaded if `model` is a hub id."""
    if Path(model).is_dir():
        return Path(model, folder)
    subfolder = folder or None
    for name in ("config.json", PREPROCESSOR):
        hf_hub_download(model, name, subfolder=subfolder)
    try:
        return Path(hf_hub_download(model, "model.safetensors", subfolder=subfolder)).parent
    except EntryNotFoundError:
        return Path(hf_hub_download(model, "pytorch_model.bin", subfolder=subfolder)).parent
