"""Registers `generate`, `vllm-args` and `dedupe` with the `sharecap` command.

Each command runs as a program of its own, so this module does not import torch or vLLM.
"""

import typer
from sharecap_client.cli.run import become, require

from service.contract.settings import WORKER_ADVICE

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def register(app: typer.Typer) -> None:
    """Add the commands to the `sharecap` application."""
    app.command(context_settings=PASS_ON)(generate)
    app.command("vllm-args", context_settings=PASS_ON)(vllm_args)
    app.command(context_settings=PASS_ON)(dedupe)


def generate(context: typer.Context) -> None:
    """Run one greedy turn of a model without the service; see `sharecap generate --help`."""
    require(("torch", "vllm"), WORKER_ADVICE)
    become("workers.commands.generate", *context.args)


def vllm_args(context: typer.Context) -> None:
    """Print options for vLLM's own server: vllm serve MODEL $(sharecap vllm-args MODEL)."""
    require(("torch", "vllm"), WORKER_ADVICE)
    become("workers.commands.vllm_args", *context.args)


def dedupe(context: typer.Context) -> None:
    """Drop captions that are too similar to an earlier caption; see `sharecap dedupe --help`."""
    require(("torch", "transformers"), WORKER_ADVICE)
    become("workers.commands.dedupe", *context.args)
