"""A checkpoint directory with the published shapes of ShareCaptioner-Video but without weights, for the benchmarks.

vLLM loads it with `load_format="dummy"`. The tokenizer is the demo model's, so the texts' token counts are not those of
the published tokenizer; the numbers of image tokens are. `write_vocabulary` fills it up to the published size, so that
each token that a model with random weights generates has a text, and that text is one token of the next prompt.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2 as spm

CONFIG: dict[str, Any] = {
    "architectures": ["InternLMXComposer2ForCausalLM"],
    "model_type": "internlm2",
    "vocab_size": 92544,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rope_theta": 1_000_000,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
TINY: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
    "plora": {"r": 16, "alpha": 16},
}
VISION: dict[str, Any] = {  # CLIP ViT-L/14-336, which the published config.json implies
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
}
SMALL_VISION: dict[str, Any] = {  # for measurements without the vision tower
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "image_size": 336,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
}
DEMO = Path(__file__).parents[1] / "workers" / "demo" / "checkpoint"
DEMO_TOKENIZER = DEMO / "tokenizer.model"


def write_checkpoint(directory: Path, **changes: Any) -> str:
    """Write config.json, with `changes`, and a tokenizer. Returns the directory as a string."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG | changes))
    shutil.copy(DEMO_TOKENIZER, directory / "tokenizer.model")
    return str(directory)


def write_vocabulary(directory: Path, size: int) -> None:
    """Add pieces to the tokenizer of a checkpoint until it has `size`."""
    path = directory / "tokenizer.model"
    proto: Any = spm.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(path.read_bytes())
    for number in range(size - len(proto.pieces)):
        proto.pieces.add(piece=f"w{number},", type=spm.ModelProto.SentencePiece.USER_DEFINED)  # type: ignore[attr-defined]
    path.write_bytes(proto.SerializeToString())


def add_keyframe_encoder(directory: Path) -> None:
    """Give a checkpoint the demo model's keyframe encoder, so that a worker downloads none."""
    shutil.copytree(DEMO / "keyframe_encoder", directory / "keyframe_encoder")
    config = json.loads((directory / "config.json").read_text())
    config["sharecap"] = {"keyframe_encoder": "keyframe_encoder"}
    (directory / "config.json").write_text(json.dumps(config))
