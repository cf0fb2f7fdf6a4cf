"""Locates the files of a checkpoint, in a directory or on the hub, and reads its config.json.

This module imports neither torch nor vLLM, so a process can check a checkpoint before it loads them.
"""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

ARCHITECTURE = "InternLMXComposer2ForCausalLM"


def checkpoint_file(model: str | Path, name: str, revision: str | None = None) -> Path:
    """Return the local path of a checkpoint's file. `model` is a directory, or a hub id whose file is downloaded.

    Raises FileNotFoundError if the directory or the file does not exist, and huggingface_hub's errors for a hub id.
    """
    directory = Path(model)
    if directory.is_dir():
        path = directory / name
        if not path.is_file():
            raise FileNotFoundError(f"{directory} has no {name}: not a checkpoint directory")
        return path
    if directory.is_absolute() or str(model).startswith((".", "~")) or str(model).count("/") != 1:
        raise FileNotFoundError(f"{model}: no such checkpoint directory")
    return Path(hf_hub_download(str(model), name, revision=revision))


def read_config(model: str | Path, revision: str | None = None) -> dict[str, Any]:
    """Return the unmodified content of config.json. Raises ValueError if it is not a JSON object."""
    path = checkpoint_file(model, "config.json", revision)
    try:
        published = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(published, dict):
        raise ValueError(f"{path} is not a JSON object")
    return published


def is_xcomposer2(published: dict[str, Any]) -> bool:
    """Return whether this plugin supports a checkpoint with this config.json."""
    return ARCHITECTURE in (published.get("architectures") or [])


def check_architecture(published: dict[str, Any], model: str | Path) -> None:
    """Raise ValueError if the checkpoint has another architecture."""
    if not is_xcomposer2(published):
        raise ValueError(f"{model}: architectures is {published.get('architectures')}, not [{ARCHITECTURE!r}]")
