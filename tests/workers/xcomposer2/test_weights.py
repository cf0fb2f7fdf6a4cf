"""Checks of config.json and of the tensors: errors name what is missing, unknown or misshapen."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.reference.checkpoint import random_tensors, write_checkpoint
from workers.xcomposer2.checkpoint import read_config
from workers.xcomposer2.config import XComposer2Config
from workers.xcomposer2.plugin import engine_args
from workers.xcomposer2.weights import check_tensors, expected_shapes, published_shapes

PUBLISHED = {
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
    "rope_scaling": {"type": "dynamic", "factor": 2.0},
    "bias": False,
    "torch_dtype": "bfloat16",
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "checkpoint"
    return write_checkpoint(path, seed=4, model_type="internlm2", layout="safetensors")


@pytest.fixture(scope="module")
def config(directory: Path) -> XComposer2Config:
    return XComposer2Config.from_published(read_config(directory))


@pytest.fixture
def tensors(config: XComposer2Config) -> dict[str, torch.Tensor]:
    return random_tensors(config.published_vocab_size, seed=4)


def load(tensors: dict[str, torch.Tensor], config: XComposer2Config) -> list[str]:
    return [name for name, _ in check_tensors(iter(tensors.items()), published_shapes(config))]


def test_the_published_sizes() -> None:
    config = XComposer2Config.from_published(PUBLISHED)
    shapes = published_shapes(config)
    assert shapes["model.layers.31.attention.wqkv.weight"] == (6144, 4096)
    assert shapes["model.layers.0.attention.wqkv.Plora_A.weight"] == (8, 4096)
    assert shapes["model.layers.0.feed_forward.w2.Plora_B.weight"] == (4096, 256)
    assert shapes["vit.vision_tower.vision_model.embeddings.position_embedding.weight"] == (577, 1024)
    assert shapes["plora_sub_GN"] == (1, 1, 1, 4096)
    assert shapes["vision_proj.0.weight"] == (4096, 4096)
    assert config.merged_side == 12
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 1e6}
    assert config.hd_num == 9


def test_every_published_tensor_is_loaded(tensors: dict[str, torch.Tensor], config: XComposer2Config) -> None:
    loaded = load(tensors, config)
    assert {name for name in tensors if "post_layernorm" not in name} == set(loaded) == set(published_shapes(config))


def test_a_quantised_layer_has_other_tensors_than_a_weight(
    tensors: dict[str, torch.Tensor], config: XComposer2Config
) -> None:
    layer = "model.layers.0.attention.wo"
    shapes = expected_shapes(config, {layer: ["qweight", "scales"]})
    tensors[f"{layer}.qweight"] = tensors.pop(f"{layer}.weight")[:1]
    with pytest.raises(ValueError, match=rf"missing tensor {layer}\.scales"):
        list(check_tensors(iter(tensors.items()), shapes))
    tensors[f"{layer}.scales"] = torch.zeros(1)
    assert f"{layer}.qweight" in dict(check_tensors(iter(tensors.items()), shapes))
    with pytest.raises(ValueError, match=rf"unexpected tensor {layer}\.qweight"):
        load(tensors, config)


def drop(tensors: dict[str, torch.Tensor], name: str) -> None:
    del tensors[name]


def reshape(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = tensors[name].T.contiguous()


def rename(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name + "_2"] = tensors[name]


@pytest.mark.parametrize(
    ("damage", "name", "message"),
    [
        (drop, "plora_glb_GN", "missing tensor plora_glb_GN"),
        (
            drop,
            "model.layers.1.attention.wo.Plora_A.weight",
            "missing tensor model.layers.1.attention.wo.Plora_A.weight",
        ),
        (reshape, "vision_proj.0.weight", "vision_proj.0.weight has shape [256, 128], expected [128, 256]"),
        (rename, "model.norm.weight", "unexpected tensor model.norm.weight_2"),
    ],
)
def test_the_error_names_the_tensor(
    tensors: dict[str, torch.Tensor],
    config: XComposer2Config,
    damage: Callable[[dict[str, torch.Tensor], str], None],
    name: str,
    message: str,
) -> None:
    damage(tensors, name)
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        load(tensors, config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "missing or not a number: hidden_size"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "rope_scaling type 'yarn'"),
        ({"bias": True}, "bias=True"),
        ({"vision_config": {"image_size": 70, "patch_size": 14}}, "even number of patches"),
    ],
)
def test_an_unsupported_config_is_rejected(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        XComposer2Config.from_published({**PUBLISHED, **change})


def test_engine_arguments(directory: Path, tmp_path: Path) -> None:
    arguments = engine_args(str(directory), dtype="float32", limit_mm_per_prompt={"image": 0})
    assert arguments["tokenizer"] == str(directory / "tokenizer.model")
    assert arguments["trust_remote_code"] is False
    assert arguments["dtype"] == "float32"
    assert arguments["limit_mm_per_prompt"] == {"image": 0}
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        engine_args(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no such checkpoint directory"):
        engine_args(str(tmp_path / "nowhere"))
    for content, message in [("{", "not valid JSON"), ("[]", "not a JSON object"), ("{}", "architectures is None")]:
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            engine_args(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(ValueError, match="LlamaForCausalLM"):
        engine_args(str(tmp_path))
