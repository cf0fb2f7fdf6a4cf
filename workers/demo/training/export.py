"""Trained weights -> a checkpoint folder in the published layout: config.json, safetensors, tokenizer.model.

Weights are stored in float16 to save space. The configuration names float32, the type they run in.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from workers.demo.training.model import DemoModel, Sizes

HD_NUM = 1
SIMILARITY_THRESHOLD = 0.9
DEMONSTRATION = (
    "This is a demonstration model. It knows only drawn scenes: one coloured shape that moves, grows, shrinks, "
    "changes its colour, leaves or appears. What it says about real videos is meaningless."
)
"""Shown to everybody who uses a service with this model."""
MAX_POSITIONS = 4096


def config(sizes: Sizes, threshold: float = SIMILARITY_THRESHOLD) -> dict[str, Any]:
    """Return config.json with the published names and the additional keys that a small model needs."""
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": sizes.vision_hidden,
        "intermediate_size": sizes.vision_mlp,
        "num_hidden_layers": sizes.vision_layers,
        "num_attention_heads": sizes.vision_heads,
        "image_size": sizes.crop,
        "patch_size": sizes.patch,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "projection_dim": sizes.vision_hidden,
    }
    return {
        "architectures": ["InternLMXComposer2ForCausalLM"],
        "model_type": "internlmxcomposer2",
        "bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.mlp,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": sizes.norm_eps,
        "rope_scaling": {"type": "dynamic", "factor": 1.0},
        "rope_theta": sizes.rope_theta,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": sizes.vocabulary,
        "vision_config": vision,
        "plora": {
            "r": sizes.plora_r,
            "alpha": sizes.plora_alpha,
            "wqkv_r": sizes.plora_wqkv_r,
            "wqkv_alpha": sizes.plora_wqkv_alpha,
        },
        "sharecap": {
            "hd_num": HD_NUM,
            "keyframe_encoder": "keyframe_encoder",
            "similarity_threshold": threshold,
            "demonstration": DEMONSTRATION,
        },
    }


def write(model: DemoModel, tokenizer: Path, folder: Path) -> None:
    """Write weights, configuration and tokenizer to `folder`. Its keyframe encoder and threshold do not change."""
    folder.mkdir(parents=True, exist_ok=True)
    threshold = SIMILARITY_THRESHOLD
    if (folder / "config.json").exists():
        threshold = json.loads((folder / "config.json").read_text())["sharecap"]["similarity_threshold"]
    weights = {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors.tmp", metadata={"format": "pt"})
    (folder / "model.safetensors.tmp").rename(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config(model.sizes, threshold), indent=2) + "\n")
    shutil.copyfile(tokenizer, folder / "tokenizer.model")


def read(folder: Path) -> DemoModel:
    """Return the model from a folder that `write` created, in float32."""
    published = json.loads((folder / "config.json").read_text())
    vision, plora = published["vision_config"], published["plora"]
    sizes = Sizes(
        crop=vision["image_size"],
        patch=vision["patch_size"],
        vision_hidden=vision["hidden_size"],
        vision_layers=vision["num_hidden_layers"],
        vision_heads=vision["num_attention_heads"],
        vision_mlp=vision["intermediate_size"],
        hidden=published["hidden_size"],
        layers=published["num_hidden_layers"],
        heads=published["num_attention_heads"],
        kv_heads=published["num_key_value_heads"],
        mlp=published["intermediate_size"],
        vocabulary=published["vocab_size"],
        rope_theta=published["rope_theta"],
        plora_r=plora["r"],
        plora_alpha=plora["alpha"],
        plora_wqkv_r=plora["wqkv_r"],
        plora_wqkv_alpha=plora["wqkv_alpha"],
        norm_eps=published["rms_norm_eps"],
    )
    model = DemoModel(sizes)
    weights = {name: tensor.to(torch.float32) for name, tensor in load_file(folder / "model.safetensors").items()}
    model.load_state_dict(weights)
    return model.eval()
