"""A checkpoint directory with the published shapes of ShareCaptioner-Video but without weights, for the benchmarks.

vLLM loads it with `load_format="dummy"`. The tokenizer is the demo model's, so the texts' token counts are not those of
the published tokenizer; the numbers of image tokens are.
"""

import json
import shutil
from pathlib import Path
from typing import Any

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
DEMO_TOKENIZER = Path(__file__).parents[1] / "workers" / "demo" / "checkpoint" / "tokenizer.model"


def write_checkpoint(directory: Path, **changes: Any) -> str:
    """Write config.json, with `changes`, and a tokenizer. Returns the directory as a string."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG | changes))
    shutil.copy(DEMO_TOKENIZER, directory / "tokenizer.model")
    return str(directory)
