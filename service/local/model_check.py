"""Checks the model that a worker is about to load, so that a wrong name or a missing network is reported at once.

Without this check, the hub's library would try for half a minute before it reports that the hub cannot be reached.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import httpx
from sharecap_client.cli.errors import CommandFailed

HUB = "https://huggingface.co"
HUB_TIMEOUT_S = 5.0
OFFLINE = {"HF_HUB_OFFLINE": "1"}
"""Makes the hub's library use its cache without asking the hub."""


class CannotStart(CommandFailed):
    """The service cannot start on this machine. The text says why, and what to do about it."""


def check_model(model: str | None) -> dict[str, str]:
    """Return environment variables that the worker needs to load the model. None stands for the demo model.

    Raises CannotStart if there cannot be such a model, or if it has to be downloaded and the hub cannot be reached.
    """
    if model is None or Path(model, "config.json").is_file():
        return {}
    looks_like_a_path = Path(model).exists() or model.startswith((".", "/", "~")) or model.count("/") != 1
    if looks_like_a_path:
        raise CannotStart(
            f"no model in {model}: --model takes a directory with a config.json, or a hub id (owner/name)"
        )
    return _check_hub(model, os.environ)


def _check_hub(model: str, env: Mapping[str, str]) -> dict[str, str]:
    """Ask the hub for the model. If the hub cannot be reached, a model in its library's cache is enough."""
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
        raise CannotStart(
            f"cannot download {model}: {hub} cannot be reached ({reason}). Connect this machine to the internet, or "
            "give --model a directory that contains the checkpoint"
        ) from None
    if answer.status_code in (401, 403, 404) and not _is_cached(model, env):
        raise CannotStart(
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
