"""Registers the plugin with vLLM and builds the engine arguments of its checkpoints.

vLLM calls `register` in each of its processes. A worker calls `check_registered` at start and builds its engine from
`engine_args`. Importing this module loads neither torch nor vLLM.
"""

from typing import Any

from workers.xcomposer2.checkpoint import ARCHITECTURE, check_architecture, checkpoint_file, read_config

NAME = "xcomposer2"  # the plugin's config format, tokenizer mode and renderer
_MODEL = f"{__package__}.model:{ARCHITECTURE}"
IMAGE_BLOCKS = 8
"""Blocks of 16 MiB that Pillow may keep for the next image. Without them, the kernel clears new pages in each turn."""


def register() -> None:
    """Register the architecture, its config format, tokenizer and renderer with vLLM. May be called repeatedly."""
    from PIL import Image  # noqa: PLC0415
    from vllm.model_executor.models.registry import ModelRegistry  # noqa: PLC0415
    from vllm.renderers.registry import RENDERER_REGISTRY  # noqa: PLC0415
    from vllm.tokenizers.registry import TokenizerRegistry  # noqa: PLC0415
    from vllm.transformers_utils.config import register_config_parser  # noqa: PLC0415

    from workers.xcomposer2.config import XComposer2ConfigParser  # noqa: PLC0415

    if ARCHITECTURE in ModelRegistry.get_supported_archs():
        return
    Image.core.set_blocks_max(IMAGE_BLOCKS)  # type: ignore[attr-defined]  # Pillow's C module
    TokenizerRegistry.register(NAME, f"{__package__}.processor", "TokenizerLoader")
    RENDERER_REGISTRY.register(NAME, f"{__package__}.renderer", "XComposer2Renderer")
    register_config_parser(NAME)(XComposer2ConfigParser)
    ModelRegistry.register_model(ARCHITECTURE, _MODEL)


def check_registered() -> None:
    """Load vLLM's plugins. Raises RuntimeError if this plugin is not among them."""
    from vllm.model_executor.models.registry import ModelRegistry  # noqa: PLC0415
    from vllm.plugins import load_general_plugins  # noqa: PLC0415

    load_general_plugins()
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        raise RuntimeError(
            f"vLLM does not know {ARCHITECTURE}: the sharecap package is not installed where vLLM looks for plugins, "
            "or VLLM_PLUGINS leaves out sharecap_xcomposer2"
        )


def engine_args(model: str, *, revision: str | None = None, **overrides: Any) -> dict[str, Any]:
    """Return vLLM's engine arguments for a checkpoint of this architecture: `AsyncEngineArgs(**engine_args(...))`.

    `model` is a directory or a hub id. `overrides` (dtype, max_model_len, ...) replace or extend the result. Reads
    config.json and locates tokenizer.model; for a hub id, downloads both. Raises FileNotFoundError, and ValueError for
    another architecture.

    `tokenizer` is the tokenizer.model file, not the checkpoint. Given a checkpoint, vLLM would read the config.json
    next to the tokenizer with its own parser, which rejects `auto_map` and some of the family's `model_type`s.
    """
    check_architecture(read_config(model, revision), model)
    return {
        "model": model,
        "revision": revision,
        "config_format": NAME,
        "tokenizer": str(checkpoint_file(model, "tokenizer.model", revision)),
        "tokenizer_mode": NAME,
        "trust_remote_code": False,
        "generation_config": "vllm",  # each request sets its own sampling parameters
        "limit_mm_per_prompt": {"image": 1},
        "mm_processor_cache_gb": 0,  # every image is new, so the cache would only hold memory
        **overrides,
    }
