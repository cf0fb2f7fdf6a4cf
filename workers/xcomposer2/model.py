"""InternLM-XComposer2-4KHD for vLLM: tiles -> crops -> image tokens -> InternLM2 with partial LoRA -> logits.

Runs in vLLM's engine process. Parameter names are the published ones. In order: vision tower and image sequence,
attention, feed-forward, decoder, the model that vLLM registers.

Image positions have the id `config.image_token_id`, one past the vocabulary. `forward` receives raw token ids in
addition to the embeddings (`requires_raw_input_tokens`), so it knows image positions without state between calls.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import CacheConfig, VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.activation import get_act_fn
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.clip import CLIPVisionModel
from vllm.model_executor.models.interfaces import SupportsMultiModal
from vllm.multimodal import MULTIMODAL_REGISTRY

from workers.xcomposer2.config import MERGE, XComposer2Config
from workers.xcomposer2.encoder_graph import EncoderCudaGraph, Grid, crop_counts, image_grids
from workers.xcomposer2.image import normalised_crops
from workers.xcomposer2.plora import PartialLoRAColumnLinear, PartialLoRARowLinear, check_scheduler
from workers.xcomposer2.processor import XComposer2DummyInputs, XComposer2ProcessingInfo, XComposer2Processor
from workers.xcomposer2.weights import check_tensors, expected_shapes

_QKV = {".q_proj.": "q", ".k_proj.": "k", ".v_proj.": "v"}  # the tower stores these three in one parameter


class VisionTower(nn.Module):
    """CLIP without the final norm, under the published name `vit.vision_tower`."""

    def __init__(self, config: XComposer2Config, prefix: str) -> None:
        super().__init__()
        self.vision_tower = CLIPVisionModel(
            config.vision_config, require_post_norm=False, prefix=f"{prefix}.vision_tower"
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Crops [n, 3, crop, crop] -> merged patches [n, m, m, 4 * width], neighbours in row-major order."""
        patches = self.vision_tower(pixels, feature_select_strategy="default")  # [n, (2m)^2, width], CLS dropped
        count, length, width = patches.shape
        side = int(length**0.5) // MERGE
        patches = patches.view(count, side, MERGE, side, MERGE, width).transpose(2, 3)  # [n, m, m, 2, 2, width]
        return patches.reshape(count, side, side, MERGE * MERGE * width)


def image_sequence(crops: Tensor, rows: int, cols: int, row_end: Tensor, view_end: Tensor) -> Tensor:
    """Return the token sequence of one image, [tokens, 4 * width].

    `crops` [1 + rows * cols, m, m, 4 * width] are merged crops, the global view first. `row_end` and `view_end`
    [4 * width] are `plora_sub_GN` and `plora_glb_GN`.
    """
    _, side, _, width = crops.shape
    tiles = crops[1:].view(rows, cols, side, side, width).transpose(1, 2)  # [rows, m, cols, m, width]
    tiles = tiles.reshape(rows * side, cols * side, width)
    view, tiles = (torch.cat([grid, row_end.expand(len(grid), 1, width)], dim=1) for grid in (crops[0], tiles))
    return torch.cat([view.flatten(0, 1), view_end.view(1, width), tiles.flatten(0, 1)])


class InternLM2Attention(nn.Module):
    """Grouped-query attention. For each KV head, `wqkv` returns its queries, its key and its value."""

    def __init__(
        self,
        config: XComposer2Config,
        cache_config: CacheConfig | None,
        quant_config: QuantizationConfig | None,
        prefix: str,
    ) -> None:
        super().__init__()
        ranks = get_tensor_model_parallel_world_size()
        if config.num_key_value_heads % ranks:
            raise ValueError(f"{config.num_key_value_heads} KV heads cannot be divided between {ranks} ranks")
        self.head_dim = config.head_dim
        self.kv_heads = config.num_key_value_heads // ranks
        self.group = config.num_attention_heads // config.num_key_value_heads
        hidden, width = config.hidden_size, config.num_attention_heads * self.head_dim
        rank, alpha = config.plora["r"], config.plora["alpha"]
        self.wqkv = PartialLoRAColumnLinear(
            hidden,
            width + 2 * config.num_key_value_heads * self.head_dim,
            rank=config.plora["wqkv_r"],
            alpha=config.plora["wqkv_alpha"],
            quant_config=quant_config,
            prefix=f"{prefix}.wqkv",
        )
        self.wo = PartialLoRARowLinear(
            width, hidden, rank=rank, alpha=alpha, quant_config=quant_config, prefix=f"{prefix}.wo"
        )
        self.rotary_emb = get_rope(
            self.head_dim, max_position=config.max_position_embeddings, rope_parameters=config.rope_parameters
        )
        self.attn = Attention(
            self.kv_heads * self.group,
            self.head_dim,
            self.head_dim**-0.5,
            num_kv_heads=self.kv_heads,
            cache_config=cache_config,
            quant_config=quant_config,
            prefix=f"{prefix}.attn",
        )

    def forward(self, positions: Tensor, x: Tensor, is_image: Tensor) -> Tensor:
        qkv = self.wqkv(x, is_image).view(-1, self.kv_heads, self.group + 2, self.head_dim)
        query = qkv[:, :, : self.group].flatten(1)  # [tokens, heads * head_dim]
        key = qkv[:, :, self.group].flatten(1)  # [tokens, kv_heads * head_dim]
        value = qkv[:, :, self.group + 1].flatten(1)
        query, key = self.rotary_emb(positions, query, key)
        return self.wo(self.attn(query, key, value), is_image)


class InternLM2FeedForward(nn.Module):
    """w2(silu(w1 x) * w3 x)"""

    def __init__(self, config: XComposer2Config, quant_config: QuantizationConfig | None, prefix: str) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        lora: dict[str, Any] = {"rank": config.plora["r"], "alpha": config.plora["alpha"], "quant_config": quant_config}
        self.w1 = PartialLoRAColumnLinear(hidden, inner, prefix=f"{prefix}.w1", **lora)
        self.w3 = PartialLoRAColumnLinear(hidden, inner, prefix=f"{prefix}.w3", **lora)
        self.w2 = PartialLoRARowLinear(inner, hidden, prefix=f"{prefix}.w2", **lora)
        self.act = get_act_fn(config.hidden_act)

    def forward(self, x: Tensor, is_image: Tensor) -> Tensor:
        return self.w2(self.act(self.w1(x, is_image)) * self.w3(x, is_image), is_image)


class InternLM2Layer(nn.Module):
    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config: Any = vllm_config.model_config.hf_config  # XComposer2Config
        quant_config = vllm_config.quant_config
        self.attention = InternLM2Attention(config, vllm_config.cache_config, quant_config, f"{prefix}.attention")
        self.feed_forward = InternLM2FeedForward(config, quant_config, f"{prefix}.feed_forward")
        self.attention_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.ffn_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, positions: Tensor, x: Tensor, residual: Tensor | None, is_image: Tensor) -> tuple[Tensor, Tensor]:
        if residual is None:
            x, residual = self.attention_norm(x), x
        else:
            x, residual = self.attention_norm(x, residual)
        x = self.attention(positions, x, is_image)
        x, residual = self.ffn_norm(x, residual)
        return self.feed_forward(x, is_image), residual


@support_torch_compile
class InternLM2Model(nn.Module):
    """The decoder, compiled as one graph by vLLM."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: Any = vllm_config.model_config.hf_config  # XComposer2Config
        self.config = config
        self.tok_embeddings = VocabParallelEmbedding(config.published_vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            InternLM2Layer(vllm_config, f"{prefix}.layers.{layer}") for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Token ids [tokens] -> [tokens, hidden]. Rows at image positions are placeholders and are overwritten."""
        return self.tok_embeddings(input_ids.clamp(max=self.config.published_vocab_size - 1))

    def forward(self, input_ids: Tensor | None, positions: Tensor, inputs_embeds: Tensor | None = None) -> Tensor:
        assert input_ids is not None  # requires_raw_input_tokens
        is_image = input_ids == self.config.image_token_id  # [tokens]
        x = self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        residual = None
        for layer in self.layers:
            x, residual = layer(positions, x, residual, is_image)
        x, _ = self.norm(x, residual)
        return x


@MULTIMODAL_REGISTRY.register_processor(
    XComposer2Processor, info=XComposer2ProcessingInfo, dummy_inputs=XComposer2DummyInputs
)
class InternLMXComposer2ForCausalLM(EncoderCudaGraph, nn.Module, SupportsMultiModal):
    """The model that vLLM registers under the architecture's name."""

    requires_raw_input_tokens = True

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        return None  # prompts are token ids, see `tokenizer.turn_ids`

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        check_scheduler(vllm_config)
        config: Any = vllm_config.model_config.hf_config  # XComposer2Config
        merged = config.vision_config.hidden_size * MERGE**2
        hidden = config.hidden_size
        self.config = config
        self.vit = VisionTower(config, _join(prefix, "vit"))
        self.vision_proj = nn.Sequential(nn.Linear(merged, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.plora_glb_GN = nn.Parameter(torch.empty(1, 1, merged), requires_grad=False)
        self.plora_sub_GN = nn.Parameter(torch.empty(1, 1, 1, merged), requires_grad=False)
        self.model = InternLM2Model(vllm_config=vllm_config, prefix=_join(prefix, "model"))
        self.output = ParallelLMHead(
            config.published_vocab_size, hidden, quant_config=vllm_config.quant_config, prefix=_join(prefix, "output")
        )
        self.logits_processor = LogitsProcessor(config.published_vocab_size)

    def get_language_model(self) -> Any:
        return self.model

    def embed_multimodal(self, **kwargs: Any) -> list[Tensor]:
        """Return the embeddings [tokens, hidden] of each image prepared by `HDImageProcessor`."""
        if kwargs.get("pixel_values") is None:
            return []
        return self.embed_images(self.encode_crops(self.crops(kwargs)), image_grids(kwargs))

    def crops(self, inputs: dict[str, Any]) -> Tensor:
        tiles: Tensor = inputs["pixel_values"]  # uint8 [tiles of all images, crop, crop, 3]
        grids = image_grids(inputs)
        images = zip(tiles.split([rows * cols for rows, cols in grids]), grids, strict=True)
        crops = torch.cat([normalised_crops(image, *grid) for image, grid in images])
        return crops.to(self.plora_sub_GN.dtype)

    def encode_crops(self, crops: Tensor) -> Tensor:
        return self.vit(crops)

    def embed_images(self, merged: Tensor, grids: list[Grid]) -> list[Tensor]:
        row_end, view_end = self.plora_sub_GN.flatten(), self.plora_glb_GN.flatten()
        images = zip(merged.split(crop_counts(grids)), grids, strict=True)
        sequences = [image_sequence(crops, *grid, row_end, view_end) for crops, grid in images]
        projected = self.vision_proj(torch.cat(sequences))
        return list(projected.split([len(sequence) for sequence in sequences]))

    def embed_input_ids(
        self,
        input_ids: Tensor,
        multimodal_embeddings: Any = None,
        *,
        is_multimodal: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        embeddings = self.model.embed_input_ids(input_ids)
        if multimodal_embeddings is not None and len(multimodal_embeddings):
            embeddings[is_multimodal] = torch.cat(list(multimodal_embeddings)).to(embeddings.dtype)
        return embeddings

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        return self.model(input_ids, positions, inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        logits = self.logits_processor(self.output, hidden_states)  # [requests, published vocabulary]
        # vLLM's vocabulary includes the id of image positions; -inf makes it impossible to generate.
        return None if logits is None else F.pad(logits, (0, 1), value=float("-inf"))

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the checkpoint's tensors. Raises ValueError for an unknown, misshapen or missing tensor."""
        parameters = dict(self.named_parameters())
        shapes = expected_shapes(self.config, self._quantised_layers())
        loaded = set()
        for name, tensor in check_tensors(iter(weights), shapes):
            part = next((part for part in _QKV if part in name), None)
            target = name.replace(part, ".qkv_proj.") if part else name
            parameter = parameters[target]
            loader: Any = getattr(parameter, "weight_loader", default_weight_loader)
            try:
                loader(parameter, tensor, _QKV[part]) if part else loader(parameter, tensor)
            except (AssertionError, RuntimeError) as error:
                if shapes[name] is not None:
                    raise
                raise ValueError(f"checkpoint: {name} has an unexpected shape, {list(tensor.shape)}") from error
            loaded.add(target)
        return loaded

    def _quantised_layers(self) -> dict[str, list[str]]:
        """Return the language model's linear layers that hold more than a plain weight, and their parameters' names."""
        layers = {
            name: [parameter for parameter, _ in layer.named_parameters(recurse=False)]
            for name, layer in self.named_modules()
            if isinstance(layer, (PartialLoRAColumnLinear, PartialLoRARowLinear, ParallelLMHead))
        }
        return {name: parameters for name, parameters in layers.items() if parameters != ["weight"]}


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
