"""The table of model families: one row holds everything that differs between families.

The captioner and the commands `generate` and `vllm-args` read this table; nothing else asks which family a model
belongs to. To add a family, write its module and add a row to `FAMILIES` before the last one. The first row that
matches a checkpoint's config.json is used.

`read_config` and `checkpoint_file` in `workers/xcomposer2/checkpoint.py` serve all families. They are there because the
plugin needs them and imports nothing else from this repository.

Importing this module is fast. The functions of a row import torch and vLLM when they are called.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workers.models.engine import OfflineTurns, TurnRenderer
from workers.prompts.choice import StyleName
from workers.xcomposer2 import plugin
from workers.xcomposer2.checkpoint import is_xcomposer2

if TYPE_CHECKING:
    from vllm.config import ModelConfig
    from vllm.renderers.base import BaseRenderer

MAX_IMAGES_PER_TURN = 2
"""A differential shows two keyframes."""

GPU_BATCHES = {"max_num_batched_tokens": 8192, "max_num_seqs": 256}
"""Batch limits on a GPU, chosen by calculation and not measured.

For an embedded engine vLLM's own defaults are 2048 tokens and 128 sequences. A step of 2048 tokens holds one image turn
(about 1750 tokens), so the vision tower would encode one image at a time. 8192 is vLLM's default for its server on GPUs
like the H100. 256 sequences are two for each of the 128 slots: the turns of parallel shots, beams, clips and
recaptions. vLLM's default CUDA graphs cover decode batches of that size. ENGINE_ARGS overrides both.
"""


@dataclass(frozen=True)
class ModelFamily:
    """One row: what the workers need to know about the models of one family."""

    name: str
    matches: Callable[[dict[str, Any]], bool]
    """Returns whether a checkpoint with this config.json belongs to the family."""
    engine_args: Callable[[str], dict[str, Any]]
    """Returns vLLM's engine arguments for a checkpoint (directory or hub id)."""
    gpu_args: Mapping[str, Any]
    """Further engine arguments on a GPU."""
    prompts: StyleName
    """The prompts that PROMPT_DIALECT=automatic selects."""
    images_per_turn: "Callable[[ModelConfig], int]"
    """Returns how many images one turn may contain. Raises CannotWork if the model accepts none."""
    turn_renderer: "Callable[[BaseRenderer[Any], ModelConfig], TurnRenderer]"
    """Returns the renderer of the family's turns. Raises CannotWork if the model cannot chat."""
    check_installed: Callable[[], None] = lambda: None
    """Raises RuntimeError if vLLM cannot load the family on this machine."""
    offline_turns: Callable[[str], OfflineTurns] | None = None
    """Returns what `sharecap generate` needs to run a checkpoint without the service; None: not supported."""
    needs_server_args: bool = False
    """Whether `vllm serve` needs `engine_args` for this family, which `sharecap vllm-args` prints."""


def _xcomposer2_renderer(renderer: "BaseRenderer[Any]", config: "ModelConfig") -> TurnRenderer:
    from workers.models.xcomposer2_turns import XComposer2TurnRenderer  # noqa: PLC0415

    return XComposer2TurnRenderer(renderer, config)


def _xcomposer2_offline_turns(model: str) -> OfflineTurns:
    from workers.models.xcomposer2_turns import load_turns  # noqa: PLC0415

    return load_turns(model)


def _chat_engine_args(model: str) -> dict[str, Any]:
    return {
        "model": model,
        "trust_remote_code": False,
        "limit_mm_per_prompt": {"image": MAX_IMAGES_PER_TURN, "video": 0, "audio": 0},
    }


def _chat_images_per_turn(config: "ModelConfig") -> int:
    from workers.models.chat_models import supported_images  # noqa: PLC0415

    supported = supported_images(config)
    return MAX_IMAGES_PER_TURN if supported is None else min(supported, MAX_IMAGES_PER_TURN)


def _chat_renderer(renderer: "BaseRenderer[Any]", config: "ModelConfig") -> TurnRenderer:
    from workers.models.chat_models import ChatTurnRenderer  # noqa: PLC0415

    return ChatTurnRenderer(renderer, config, MAX_IMAGES_PER_TURN)


FAMILIES: Sequence[ModelFamily] = (
    ModelFamily(
        name="xcomposer2",
        matches=is_xcomposer2,
        engine_args=plugin.engine_args,
        gpu_args={"dtype": "bfloat16", **GPU_BATCHES},
        prompts="xcomposer2",
        images_per_turn=lambda _: 1,
        turn_renderer=_xcomposer2_renderer,
        check_installed=plugin.check_registered,
        offline_turns=_xcomposer2_offline_turns,
        needs_server_args=True,
    ),
    ModelFamily(
        name="chat",  # any other model that vLLM serves itself
        matches=lambda _: True,
        engine_args=_chat_engine_args,
        gpu_args={"dtype": "auto", **GPU_BATCHES},
        prompts="hierarchical",
        images_per_turn=_chat_images_per_turn,
        turn_renderer=_chat_renderer,
    ),
)


def family_of(config: dict[str, Any]) -> ModelFamily:
    """Return the family of the checkpoint with this config.json."""
    return next(family for family in FAMILIES if family.matches(config))
