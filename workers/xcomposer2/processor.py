"""vLLM's multi-modal processor: converts a prompt with an image placeholder, and the image, to token ids and tiles.

Runs in vLLM's front-end process, before `model.py`. The number of image tokens and the tiles both come from
`hd_tiling`. Each request may set the crop budget `hd_num` (`mm_processor_kwargs={"hd_num": 16}`). vLLM includes it in
the image's hash, so caches distinguish budgets.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from vllm.config.multimodal import MultiModalDummyOptions
from vllm.inputs import MultiModalDataDict
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import ImageProcessorItems, MultiModalDataItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdate,
)
from vllm.tokenizers.hf import get_cached_tokenizer

from workers.xcomposer2.config import XComposer2Config
from workers.xcomposer2.hd_tiling import Tiling, grid_tokens, plan_tiling
from workers.xcomposer2.image import cut_tiles
from workers.xcomposer2.tokenizer import load_tokenizer

MAX_HD_NUM = 55  # the budget used to train InternLM-XComposer2-4KHD
_MIN_TEXT_TOKENS = 32  # the context must have room for a prompt next to the largest image


class TokenizerLoader:
    """Loads the tokenizer for vLLM when `tokenizer_mode="xcomposer2"`."""

    @classmethod
    def from_pretrained(cls, path_or_repo_id: str | Path, *_: Any, revision: str | None = None, **__: Any) -> Any:
        """Return the tokenizer of a tokenizer.model file, a checkpoint directory or a hub id."""
        return get_cached_tokenizer(load_tokenizer(path_or_repo_id, revision))


class HDImageProcessor:
    """Has the interface of a Hugging Face processor: converts images to tiles and grids."""

    def __init__(self, config: XComposer2Config, tokenizer: Any, max_hd_num: int, hd_num: object = None, **_: Any):
        budget = config.hd_num if hd_num is None else hd_num
        if not isinstance(budget, int) or isinstance(budget, bool) or not 1 <= budget <= max_hd_num:
            raise ValueError(f"hd_num must be a whole number from 1 to {max_hd_num}, not {budget!r}")
        self.hd_num = budget
        self.crop = config.vision_config.image_size
        self.tokenizer = tokenizer

    def plan(self, width: int, height: int) -> Tiling:
        """Return the tiling of an image of this size in pixels."""
        return plan_tiling(width, height, self.hd_num, self.crop)

    def __call__(self, images: Sequence[Any] = (), text: str | None = None, **_: Any) -> BatchFeature:
        """Return `pixel_values` uint8 [tiles of all images, crop, crop, 3], `tile_count` [images], `grid` [images, 2].

        vLLM before 0.27 also passes `text` and expects its token ids as `input_ids`.
        """
        out: dict[str, Any] = {}
        if text is not None:
            out["input_ids"] = torch.tensor([self.tokenizer.encode(text)])
        if len(images):
            pil_images = [_pil_image(image) for image in images]
            tilings = [self.plan(*image.size) for image in pil_images]
            out["pixel_values"] = torch.cat([cut_tiles(*pair) for pair in zip(pil_images, tilings, strict=True)])
            out["grid"] = torch.tensor([(tiling.rows, tiling.cols) for tiling in tilings])
            out["tile_count"] = out["grid"].prod(dim=1)
        return BatchFeature(out)


def _pil_image(image: Any) -> Image.Image:
    return image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))  # [height, width, 3] uint8


class XComposer2ProcessingInfo(BaseProcessingInfo):
    """Tells vLLM how many tokens a checkpoint's images may need."""

    def get_hf_config(self) -> XComposer2Config:
        return self.ctx.get_hf_config(XComposer2Config)

    def get_hf_processor(self, **kwargs: object) -> Any:  # HDImageProcessor
        config = self.get_hf_config()
        limit = self.max_hd_num()
        return self.ctx.init_processor(
            HDImageProcessor, config=config, tokenizer=self.get_tokenizer(), max_hd_num=limit, **kwargs
        )

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        return {"image": max_image_tokens(self.max_hd_num(), self.get_hf_config().merged_side)}

    def max_hd_num(self) -> int:
        """Return the largest crop budget whose images fit into the context together with some text."""
        room = self.ctx.model_config.max_model_len - _MIN_TEXT_TOKENS
        side = self.get_hf_config().merged_side
        fitting = [n for n in range(1, MAX_HD_NUM + 1) if max_image_tokens(n, side) <= room]
        if not fitting:
            minimum = max_image_tokens(1, side) + _MIN_TEXT_TOKENS
            raise ValueError(f"max_model_len must be at least {minimum} for this checkpoint's smallest image")
        return max(fitting)


@cache
def max_image_tokens(hd_num: int, merged_side: int) -> int:
    """Return the largest token count of any grid within the budget. Tall grids need the most separators."""
    return max(
        grid_tokens(rows, cols, merged_side)
        for cols in range(1, hd_num + 1)
        for rows in range(cols, hd_num // cols + 1)
    )


class XComposer2DummyInputs(BaseDummyInputsBuilder[XComposer2ProcessingInfo]):
    """The largest possible input. vLLM uses it to measure memory at start."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        tokenizer: Any = self.info.get_tokenizer()  # XComposer2Tokenizer
        return tokenizer.image_placeholder * mm_counts.get("image", 0)

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: MultiModalDummyOptions | None = None
    ) -> MultiModalDataDict:
        side = self.info.get_hf_config().vision_config.image_size
        tall = self.info.max_hd_num() * side  # one column of crops has the most separators
        options: Any = mm_options.get("image") if mm_options else None
        images = self._get_dummy_images(
            width=side, height=tall, num_images=mm_counts.get("image", 0), overrides=options
        )
        return {"image": images}


class XComposer2Processor(BaseMultiModalProcessor[XComposer2ProcessingInfo]):
    """vLLM's multi-modal processor for this architecture."""

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> Any:
        inputs = super().get_dummy_inputs(*args, **kwargs)
        inputs.hf_processor_mm_kwargs = {"hd_num": self.info.max_hd_num()}
        return inputs

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        counts = hf_inputs.get("tile_count", torch.empty(0, dtype=torch.long))
        return {
            "pixel_values": MultiModalFieldConfig.flat_from_sizes("image", counts),
            "grid": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
            "tile_count": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        processor = self.info.get_hf_processor(**hf_processor_mm_kwargs)
        config = self.info.get_hf_config()
        tokenizer: Any = self.info.get_tokenizer()  # XComposer2Tokenizer

        def image_tokens(index: int) -> list[int]:
            size = mm_items.get_items("image", ImageProcessorItems).get_image_size(index)
            count = processor.plan(size.width, size.height).image_tokens(config.merged_side)
            return [config.image_token_id] * count

        return [PromptReplacement(modality="image", target=[tokenizer.image_placeholder_id], replacement=image_tokens)]
