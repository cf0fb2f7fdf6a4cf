"""Functions that commands share: run a coroutine, check for optional packages, become another program."""

import asyncio
import importlib.util
import os
import sys
from collections.abc import Coroutine, Iterable
from typing import Any, NoReturn

import typer

from sharecap_client.cli.errors import CommandFailed

EXIT_INTERRUPTED = 130


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


def become(module: str, *arguments: str, **env: str | None) -> NoReturn:
    """Replace this process by `python -m module`, with the values of `env` that are not None in its environment.

    `-P` keeps the current directory off the module search path: a folder there may have the name of a package.
    """
    changes = {name: value for name, value in env.items() if value is not None}
    os.execve(sys.executable, [sys.executable, "-P", "-m", module, *arguments], {**os.environ, **changes})
