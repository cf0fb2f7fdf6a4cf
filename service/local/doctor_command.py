"""`sharecap doctor`: what this machine lacks for a service, with a remedy for each."""

import asyncio

import typer
from rich.console import Console
from rich.text import Text

from service.contract.settings import configured_redis_url
from service.local.cli_options import (
    DEFAULT_DATA_DIR,
    DEFAULT_HOST,
    DEFAULT_PORT,
    DataDir,
    EmbeddedOrRedisUrl,
    Model,
    Port,
)
from service.local.diagnosis import Finding, State, findings

LABELS = {State.OK: ("ok", "green"), State.NOTE: ("note", "yellow"), State.MISSING: ("missing", "bold red")}
WIDTH = max(len(label) for label, _ in LABELS.values())

out = Console(highlight=False)


def doctor(
    *,
    model: Model = None,
    port: Port = DEFAULT_PORT,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    redis_url: EmbeddedOrRedisUrl = None,
) -> None:
    """Say what this machine lacks for `sharecap up`: GPU, driver, sandbox, disk, Redis, model, packages.

    Each finding has a remedy. Exit status 1 if something necessary is missing. Nothing is changed.
    """
    url = redis_url or configured_redis_url()
    listed = asyncio.run(findings(model or None, data_dir.absolute(), url, DEFAULT_HOST, port))
    for finding in listed:
        _print(finding)
    missing = [finding.name for finding in listed if finding.state is State.MISSING]
    out.print(f"this machine lacks: {', '.join(missing)}" if missing else "this machine can run `sharecap up`")
    raise typer.Exit(1 if missing else 0)


def _print(finding: Finding) -> None:
    label, style = LABELS[finding.state]
    line = Text.assemble((f"{label:>{WIDTH}}", style), f"  {finding.name}: {finding.detail}")
    out.print(line, soft_wrap=True)
    if finding.remedy:
        out.print(Text(f"{'':>{WIDTH}}  → {finding.remedy}"), soft_wrap=True)
