"""CUDA graphs of the vision tower: vLLM's protocol `SupportsEncoderCudaGraph`, for `model.py`.

Crops have one fixed size, so a graph is recorded for a number of crops and serves any images with at most that many
crops. The graph contains the vision tower only. The crops are computed before it; separators and projector follow it,
because they depend on the images' grids. vLLM counts in tokens, so a budget is a number of crops times the tokens of
one crop.

vLLM recognises the protocol by its methods, so nothing is imported from versions that lack it. It is off unless the
engine argument `compilation_config` contains `{"cudagraph_mm_encoder": true}`.
"""

from typing import Any

import torch
from torch import Tensor

from workers.xcomposer2.config import XComposer2Config
from workers.xcomposer2.hd_tiling import grid_tokens

Grid = tuple[int, int]
"""Rows and columns of one image's tiles."""


def image_grids(inputs: dict[str, Any]) -> list[Grid]:
    """Return the grids of the images that `HDImageProcessor` prepared."""
    return [(int(rows), int(cols)) for rows, cols in inputs["grid"]]


def crop_counts(grids: list[Grid]) -> list[int]:
    """Return each image's number of crops: its tiles and the global view."""
    return [rows * cols + 1 for rows, cols in grids]


class EncoderCudaGraph:
    """The protocol. `inputs` and `mm_kwargs` are batches of images as `HDImageProcessor` prepares them."""

    supports_encoder_cudagraph = True
    config: XComposer2Config

    def crops(self, inputs: dict[str, Any]) -> Tensor:
        """Return the crops of all images [crops, 3, crop, crop] in the model's dtype."""
        raise NotImplementedError

    def encode_crops(self, crops: Tensor) -> Tensor:
        """Crops [crops, 3, crop, crop] -> merged patches [crops, m, m, 4 * width]."""
        raise NotImplementedError

    def embed_images(self, merged: Tensor, grids: list[Grid]) -> list[Tensor]:
        """Merged patches [crops, m, m, 4 * width] of all images -> the embeddings [tokens, hidden] of each image."""
        raise NotImplementedError

    def get_encoder_cudagraph_config(self) -> Any:
        from vllm.v1.worker.encoder_cudagraph_defs import EncoderCudaGraphConfig  # noqa: PLC0415 (not in every version)

        return EncoderCudaGraphConfig(
            modalities=["image"], buffer_keys=["crops"], out_hidden_size=self.config.hidden_size
        )

    def get_input_modality(self, mm_kwargs: dict[str, Any]) -> str:
        return "image"

    def get_max_frames_per_video(self) -> int:
        return 0

    def get_encoder_cudagraph_budget_range(self, vllm_config: Any) -> tuple[int, int]:
        """Return the smallest and largest budget. vLLM doubles the smallest until it reaches the largest.

        Images that fill the default crop budget fit without padding if there are one, two or four: the smallest budget
        is one of them, or half of one if that is a whole number of crops. The largest covers all images that one step
        of the scheduler can encode.
        """
        full = self.config.hd_num + 1  # crops
        smallest = self.config.merged_side**2 * (full if full % 2 else full // 2)
        return smallest, max(smallest, vllm_config.scheduler_config.max_num_batched_tokens)

    def get_encoder_cudagraph_item_specs(self, mm_kwargs: dict[str, Any]) -> list[Any]:
        from vllm.v1.worker.encoder_cudagraph_defs import EncoderItemSpec  # noqa: PLC0415 (not in every version)

        side = self.config.merged_side
        grids = image_grids(mm_kwargs)
        return [
            EncoderItemSpec(
                input_size=count,
                output_tokens=grid_tokens(rows, cols, side),
                path_output_tokens={"default": count * side**2},
            )
            for (rows, cols), count in zip(grids, crop_counts(grids), strict=True)
        ]

    def select_encoder_cudagraph_items(self, mm_kwargs: dict[str, Any], indices: list[int]) -> dict[str, Any]:
        """Return the batch that consists of these images."""
        tiles: Tensor = mm_kwargs["pixel_values"]
        images = tiles.split([rows * cols for rows, cols in image_grids(mm_kwargs)])
        return {
            "pixel_values": torch.cat([images[index] for index in indices]) if indices else tiles[:0],
            "grid": mm_kwargs["grid"][indices],
        }

    def prepare_encoder_cudagraph_capture_inputs(  # noqa: PLR0917 (vLLM's signature)
        self,
        token_budget: int,
        max_batch_size: int,
        max_frames_per_batch: int,
        device: torch.device,
        dtype: torch.dtype,
        path: str = "default",
        axis_keys: Any = None,
    ) -> Any:
        """Return the buffer of crops that a graph of this budget reads."""
        from vllm.v1.worker.encoder_cudagraph_defs import EncoderCudaGraphCaptureInputs  # noqa: PLC0415 (see above)

        side = self.config.vision_config.image_size
        count = max(1, token_budget // self.config.merged_side**2)
        return EncoderCudaGraphCaptureInputs(
            values={"crops": torch.zeros(count, 3, side, side, device=device, dtype=dtype)}
        )

    def prepare_encoder_cudagraph_replay_buffers(
        self, mm_kwargs: dict[str, Any], max_batch_size: int, max_frames_per_batch: int, path: str = "default"
    ) -> Any:
        """Return the crops that vLLM copies to the start of the buffer; it fills the rest with zeros."""
        from vllm.v1.worker.encoder_cudagraph_defs import EncoderCudaGraphReplayBuffers  # noqa: PLC0415 (see above)

        return EncoderCudaGraphReplayBuffers(values={"crops": self.crops(mm_kwargs)})

    def encoder_cudagraph_forward(self, inputs: dict[str, Tensor], path: str = "default") -> Tensor:
        """Return the merged patches [crops * m * m, 4 * width]. This is what a graph contains."""
        return self.encode_crops(inputs["crops"]).flatten(0, 2)

    def encoder_eager_forward(self, mm_kwargs: dict[str, Any], path: str = "default") -> Tensor:
        """Return the same without a graph, for a batch with more crops than the largest budget."""
        return self.encoder_cudagraph_forward({"crops": self.crops(mm_kwargs)})

    def postprocess_encoder_output(  # noqa: PLR0917 (vLLM's signature)
        self,
        outputs: dict[str, Tensor],
        indices: list[int],
        per_item_out_tokens: list[int],
        dest: Any,
        clone: bool = False,
        batch_mm_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Store the embeddings of each image of the batch in `dest`, under its index.

        They are new tensors, so `clone` is not needed.
        """
        assert batch_mm_kwargs is not None
        grids, side = image_grids(batch_mm_kwargs), self.config.merged_side
        merged = outputs["default"].unflatten(0, (-1, side, side))[: sum(crop_counts(grids))]  # the rest is padding
        for index, embeddings in zip(indices, self.embed_images(merged, grids), strict=True):
            dest[index] = embeddings
