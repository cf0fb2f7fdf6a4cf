"""Random tiny checkpoints in the published layout, for comparing the plugin with `model.ReferenceModel`.

The weights are scaled so that the best logits are far apart, and partial LoRA and separators affect the answers.
"""

import io
import json
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from sentencepiece import SentencePieceTrainer
from torch import Tensor

VISION = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rope_theta": 1_000_000,
    "rms_norm_eps": 1e-5,
}
PLORA = {"r": 16, "alpha": 16, "wqkv_r": 8, "wqkv_alpha": 16}
RESERVED = [f"[UNUSED_TOKEN_{n}]" for n in range(147)]


def train_tokenizer(path: Path) -> int:
    """Train a small SentencePiece model with the family's properties. Returns the size of its vocabulary."""
    lines = [
        "The quick brown fox jumps over the lazy dog, and a red circle moves left.",
        "This is the first frame of a video, describe it in detail. Second(s) of a video: 4.00, 12.50",
        "Übergrößenträger, naïve café; 你好，世界。 今天天气很好。 こんにちは",
        "user\nassistant\n    def f(x):\n\treturn x",
    ]
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=640,
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        user_defined_symbols=["——", *RESERVED],
        pad_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return 640


def write_checkpoint(directory: Path, *, seed: int, model_type: str, layout: str, auto_map: bool = False) -> Path:
    """Write a checkpoint. `layout` is "bin" (two shards and an index) or "safetensors" (one file).

    With `auto_map`, config.json names Python files, which exist and must never run.
    """
    directory.mkdir(parents=True)
    vocab = train_tokenizer(directory / "tokenizer.model")
    config = {
        "architectures": ["InternLMXComposer2ForCausalLM"],
        "model_type": model_type,
        "vocab_size": vocab,
        **SIZES,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "hidden_act": "silu",
        "bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "vision_config": VISION,
        "plora": PLORA,
        "sharecap": {"hd_num": 4},
    }
    if auto_map:
        config["auto_map"] = {"AutoConfig": "configuration.Config", "AutoModelForCausalLM": "modeling.Model"}
        for name in ("configuration.py", "modeling.py"):
            (directory / name).write_text("raise SystemExit('remote code has run')\n")
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    save_tensors(directory, random_tensors(vocab, seed), layout)
    return directory


def save_tensors(directory: Path, tensors: dict[str, Tensor], layout: str) -> None:
    """Write the tensors in one of the two layouts."""
    if layout == "safetensors":
        save_file(tensors, directory / "model.safetensors")
        return
    names = sorted(tensors)
    half = len(names) // 2
    index: dict[str, str] = {}
    for number, part in enumerate((names[:half], names[half:]), start=1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: tensors[name] for name in part}, directory / file)
        index |= dict.fromkeys(part, file)
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def random_tensors(vocab: int, seed: int) -> dict[str, Tensor]:
    """Return random values for every published tensor, and for CLIP's final norm, which real files also contain."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=generator) * std

    tensors: dict[str, Tensor] = {}

    def linear(name: str, outputs: int, inputs: int, *, bias: bool = False) -> None:
        tensors[f"{name}.weight"] = normal(outputs, inputs, std=1 / math.sqrt(inputs))
        if bias:
            tensors[f"{name}.bias"] = normal(outputs, std=0.1)

    def norm(name: str, width: int, *, bias: bool = False) -> None:
        tensors[f"{name}.weight"] = 1 + normal(width, std=0.2)
        if bias:
            tensors[f"{name}.bias"] = normal(width, std=0.1)

    hidden, inner = SIZES["hidden_size"], SIZES["intermediate_size"]
    kv_width = 2 * SIZES["num_key_value_heads"] * hidden // SIZES["num_attention_heads"]
    tensors["model.tok_embeddings.weight"] = normal(vocab, hidden)
    tensors["output.weight"] = normal(vocab, hidden, std=3 / math.sqrt(hidden))
    norm("model.norm", hidden)
    maps = {
        "attention.wqkv": (hidden + kv_width, hidden, PLORA["wqkv_r"], PLORA["wqkv_alpha"]),
        "attention.wo": (hidden, hidden, PLORA["r"], PLORA["alpha"]),
        "feed_forward.w1": (inner, hidden, PLORA["r"], PLORA["alpha"]),
        "feed_forward.w2": (hidden, inner, PLORA["r"], PLORA["alpha"]),
        "feed_forward.w3": (inner, hidden, PLORA["r"], PLORA["alpha"]),
    }
    for layer in range(SIZES["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        norm(f"{prefix}.attention_norm", hidden)
        norm(f"{prefix}.ffn_norm", hidden)
        for name, (outputs, inputs, rank, alpha) in maps.items():
            linear(f"{prefix}.{name}", outputs, inputs)
            linear(f"{prefix}.{name}.Plora_A", rank, inputs)
            # makes scale * B A x about as large as W x
            tensors[f"{prefix}.{name}.Plora_B.weight"] = normal(outputs, rank, std=rank / alpha / math.sqrt(rank))
    width, name = VISION["hidden_size"], "vit.vision_tower.vision_model"
    patch = VISION["patch_size"]
    tensors[f"{name}.embeddings.class_embedding"] = normal(width)
    tensors[f"{name}.embeddings.patch_embedding.weight"] = normal(width, 3, patch, patch, std=1 / patch)
    positions = (VISION["image_size"] // patch) ** 2 + 1
    tensors[f"{name}.embeddings.position_embedding.weight"] = normal(positions, width, std=0.5)
    norm(f"{name}.pre_layrnorm", width, bias=True)
    norm(f"{name}.post_layernorm", width, bias=True)
    for layer in range(VISION["num_hidden_layers"]):
        block = f"{name}.encoder.layers.{layer}"
        norm(f"{block}.layer_norm1", width, bias=True)
        norm(f"{block}.layer_norm2", width, bias=True)
        for part in "qkv":
            linear(f"{block}.self_attn.{part}_proj", width, width, bias=True)
        linear(f"{block}.self_attn.out_proj", width, width, bias=True)
        linear(f"{block}.mlp.fc1", VISION["intermediate_size"], width, bias=True)
        linear(f"{block}.mlp.fc2", width, VISION["intermediate_size"], bias=True)
    linear("vision_proj.0", hidden, 4 * width, bias=True)
    linear("vision_proj.2", hidden, hidden, bias=True)
    tensors["vision_proj.2.weight"] *= 3  # compensates for GELU: image tokens get the same scale as text tokens
    tensors["plora_glb_GN"] = normal(1, 1, 4 * width, std=2)
    tensors["plora_sub_GN"] = normal(1, 1, 1, 4 * width, std=2)
    return tensors


def random_image(size: tuple[int, int], seed: int) -> Image.Image:
    """Return an image of coarse coloured blocks; `size` is (width, height) in pixels."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC)
