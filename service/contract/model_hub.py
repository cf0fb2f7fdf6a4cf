"""Asks the model hub whether a model can be downloaded, before a program that needs minutes to start tries to.

Without this check, the hub's library would try for half a minute before it reports that the hub cannot be reached.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import httpx

HUB = "https://huggingface.co"
HUB_TIMEOUT_S = 5.0
OFFLINE = {"HF_HUB_OFFLINE": "1"}
"""Makes the hub's library use its cache without asking the hub."""


class ModelUnavailable(Exception):
    """The model cannot be loaded. The text says why, and what to do about it."""


def check_hub(model: str) -> dict[str, str]:
    """Return environment variables with which the hub's library loads `model` (owner/name) without delay.

    If the hub cannot be reached, a model in the library's cache is enough. Raises ModelUnavailable.
    """
    return _check_hub(model, os.environ)


def is_hub_id(model: str) -> bool:
    """Return whether `model` has the form owner/name and is not a path."""
    return model.count("/") == 1 and not model.startswith((".", "/", "~")) and not Path(model).exists()


def _check_hub(model: str, env: Mapping[str, str]) -> dict[str, str]:
    if env.get("HF_HUB_OFFLINE"):
        return {}
    hub = env.get("HF_ENDPOINT") or HUB
    token = _token(env)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        answer = httpx.head(f"{hub}/{model}/resolve/main/config.json", headers=headers, timeout=HUB_TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        if _is_cached(model, env):
            return OFFLINE
        reason = str(error) or type(error).__name__
        raise ModelUnavailable(
            f"cannot download {model}: {hub} cannot be reached ({reason}). Connect this machine to the internet, or "
            "name a directory that contains the checkpoint"
        ) from None
    if answer.status_code in (401, 403, 404) and not _is_cached(model, env):
        raise ModelUnavailable(
            f"{hub} has no public model {model}: check the name; for a private or gated model, set HF_TOKEN"
        )
    return {}


def _is_cached(model: str, env: Mapping[str, str]) -> bool:
    """Return whether the hub's library has downloaded the model before."""
    cache = Path(env.get("HF_HUB_CACHE") or _hub_home(env) / "hub")
    return any((cache / f"models--{model.replace('/', '--')}").glob("snapshots/*/config.json"))


def _token(env: Mapping[str, str]) -> str:
    """Return the token that the hub's library would use, "" if there is none."""
    try:
        return env.get("HF_TOKEN") or Path(env.get("HF_TOKEN_PATH") or _hub_home(env) / "token").read_text().strip()
    except OSError:
        return ""


def _hub_home(env: Mapping[str, str]) -> Path:
    return Path(env.get("HF_HOME") or Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache", "huggingface"))
