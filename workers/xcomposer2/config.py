"""Converts a checkpoint's config.json to the configuration that vLLM, the processor and the model use.

Only `architectures` identifies a checkpoint; its `model_type` is ignored, and its Python files (`auto_map`) never run.
Published checkpoints have no vision section and use CLIP ViT-L/14-336. Small checkpoints can override this with the
optional keys `vision_config` and `plora`.
"""

from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig, PretrainedConfig
from vllm.transformers_utils.config_parser_base import ConfigParserBase

from workers.xcomposer2.checkpoint import ARCHITECTURE, check_architecture, read_config
from workers.xcomposer2.hd_tiling import CLIP_CROP_PX

DEFAULT_HD_NUM = 9  # crops per image in the reference scripts for video frames
MERGE = 2  # 2 x 2 neighbouring patches are merged into one image token

# openai/clip-vit-large-patch14-336
_CLIP_L_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": CLIP_CROP_PX,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
# Ranks and alphas of the published checkpoints' partial LoRA.
_PLORA = {"r": 256, "alpha": 256, "wqkv_r": 8, "wqkv_alpha": 16}

_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)


class XComposer2Config(PretrainedConfig):
    """InternLM2 fields under their usual names, `vision_config`, `plora`, and values derived from them.

    `vocab_size` is the checkpoint's plus one. The extra id, `image_token_id`, marks image positions. It has no
    embedding and no logit, so neither text nor the model can produce it.
    """

    model_type = "sharecap_xcomposer2"

    @classmethod
    def from_published(cls, published: dict[str, Any]) -> "XComposer2Config":
        """Build the configuration from config.json. Raises ValueError that names the missing or unsupported key."""
        missing = [key for key in _REQUIRED if not isinstance(published.get(key), int)]
        if missing:
            raise ValueError(f"config.json: missing or not a number: {', '.join(missing)}")
        for key in ("bias", "tie_word_embeddings"):
            if published.get(key):
                raise ValueError(f"config.json: {key}=True is not part of this architecture")
        heads = published["num_attention_heads"]
        vision: Any = CLIPVisionConfig(**(published.get("vision_config") or _CLIP_L_336))
        if vision.image_size % (vision.patch_size * MERGE):
            raise ValueError("config.json: vision_config.image_size must hold an even number of patches")
        fields = {
            "architectures": [ARCHITECTURE],
            "dtype": published.get("dtype") or published.get("torch_dtype"),
            "tie_word_embeddings": False,
            "bos_token_id": published.get("bos_token_id", 1),
            "eos_token_id": published.get("eos_token_id", 2),
        }
        config = cls(**fields)
        config.published_vocab_size = published["vocab_size"]
        config.vocab_size = published["vocab_size"] + 1
        config.image_token_id = published["vocab_size"]
        config.hidden_size = published["hidden_size"]
        config.intermediate_size = published["intermediate_size"]
        config.num_hidden_layers = published["num_hidden_layers"]
        config.num_attention_heads = heads
        config.num_key_value_heads = published.get("num_key_value_heads") or heads
        config.head_dim = config.hidden_size // heads
        config.hidden_act = published.get("hidden_act", "silu")
        config.rms_norm_eps = published.get("rms_norm_eps", 1e-5)
        config.max_position_embeddings = published["max_position_embeddings"]
        config.rope_parameters = _rope(published)
        config.vision_config = vision
        config.plora = {**_PLORA, **(published.get("plora") or {})}
        config.hd_num = (published.get("sharecap") or {}).get("hd_num", DEFAULT_HD_NUM)
        if quantization := published.get("quantization_config"):
            config.quantization_config = quantization  # vLLM reads it
        return config

    @property
    def merged_side(self) -> int:
        """Number of image tokens along one side of a crop (12 for CLIP-L/336)."""
        return self.vision_config.image_size // self.vision_config.patch_size // MERGE


def _rope(published: dict[str, Any]) -> dict[str, Any]:
    """Return plain RoPE parameters, for plain and for dynamic-NTK checkpoints.

    Dynamic NTK only changes positions beyond `max_position_embeddings`, and vLLM rejects a longer context by default.
    vLLM's own "dynamic" layer is not used because it would scale short sequences too.
    """
    scaling = published.get("rope_scaling") or published.get("rope_parameters") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in ("default", "dynamic"):
        raise ValueError(f"config.json: rope_scaling type {kind!r} is not part of this architecture")
    theta = published.get("rope_theta") or scaling.get("rope_theta") or 10000.0
    return {"rope_type": "default", "rope_theta": float(theta)}


class XComposer2ConfigParser(ConfigParserBase):
    """Reads config.json for vLLM when `config_format="xcomposer2"`."""

    def parse(
        self,
        model: str | Path,
        trust_remote_code: bool,
        revision: str | None = None,
        code_revision: str | None = None,
        **kwargs: Any,
    ) -> tuple[dict[str, Any], PretrainedConfig]:
        """Return the raw dict and the config. Raises ValueError for another architecture."""
        published = read_config(model, revision)
        check_architecture(published, model)
        return published, XComposer2Config.from_published(published)
