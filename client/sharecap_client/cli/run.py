"""What commands share: run a coroutine, or become another program."""

import asyncio
import os
import sys
from collections.abc import Coroutine
from typing import Any, NoReturn

import typer

EXIT_INTERRUPTED = 130


def run(work: Coroutine[Any, Any, int]) -> NoReturn:
    """Run `work` and exit with the status that it returns, or with 130 after Ctrl-C."""
    try:
        status = asyncio.run(work)
    except (KeyboardInterrupt, asyncio.CancelledError):
        status = EXIT_INTERRUPTED
    raise typer.Exit(status)


def become(module: str, *arguments: str, **env: str | None) -> NoReturn:
    """Replace this process by `python -m module`, with `env` added to its environment.

    `-P` keeps the current directory out of the module search path: a folder there may have the name of a package.
    """
    given = {name: value for name, value in env.items() if value is not None}
    os.execve(sys.executable, [sys.executable, "-P", "-m", module, *arguments], {**os.environ, **given})
