"""Functions that commands share: run a coroutine, check for optional packages, become another program."""

import asyncio
import importlib.util
import json
import os
import shlex
import sys
from collections.abc import Coroutine, Iterable
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any, NoReturn
from urllib.parse import urlsplit
from urllib.request import url2pathname

import typer

from sharecap_client.cli.errors import CommandFailed

EXIT_INTERRUPTED = 130
DISTRIBUTION = "sharecap-client"


def run(work: Coroutine[Any, Any, int]) -> NoReturn:
    """Run `work` and exit with the status that it returns, or with 130 after Ctrl-C."""
    try:
        status = asyncio.run(work)
    except (KeyboardInterrupt, asyncio.CancelledError):  # what was interrupted has said so
        status = EXIT_INTERRUPTED
    raise typer.Exit(status)


def require(packages: Iterable[str], advice: str) -> None:
    """Raise CommandFailed with `advice` if one of these top-level packages is not installed. Imports none of them."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise CommandFailed(f"not installed: {', '.join(missing)}. {advice}")


def require_extras(packages: Iterable[str], *extras: str) -> None:
    """Raise CommandFailed, with the command that installs these extras, if one of the packages is not installed."""
    command = (sys.executable, "-m", "pip", "install", *_pip_arguments(",".join(extras)))
    require(packages, f"Install them with: {shlex.join(command)}")


def _pip_arguments(extras: str) -> list[str]:
    """Return what pip installs this package with `extras` from: the place that this copy of it came from."""
    try:
        origin = json.loads(distribution(DISTRIBUTION).read_text("direct_url.json") or "{}")
    except PackageNotFoundError:  # found through PYTHONPATH
        origin = {}
    url = origin.get("url", "")
    if "dir_info" in origin:
        path = f"{url2pathname(urlsplit(url).path)}[{extras}]"
        return ["-e", path] if origin["dir_info"].get("editable") else [path]
    if "vcs_info" in origin:
        url = f"{origin['vcs_info']['vcs']}+{url}#subdirectory={origin.get('subdirectory', '')}"
    return [f"{DISTRIBUTION}[{extras}]{f' @ {url}' if url else ''}"]


def become(module: str, *arguments: str, **env: str | None) -> NoReturn:
    """Replace this process by `python -m module`, with the values of `env` that are not None in its environment.

    `-P` keeps the current directory off the module search path: a folder there may have the name of a package.
    """
    changes = {name: value for name, value in env.items() if value is not None}
    os.execve(sys.executable, [sys.executable, "-P", "-m", module, *arguments], {**os.environ, **changes})
