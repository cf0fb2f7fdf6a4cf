"""Registers `generate`, `vllm-args` and `dedupe` with the `sharecap` command.

Each command runs as its own program, so that this module imports nothing heavy.
"""

import typer
from sharecap_client.cli.run import become

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def register(app: typer.Typer) -> None:
    """Add the commands to the `sharecap` application."""
    app.command(context_settings=PASS_ON)(generate)
    app.command("vllm-args", context_settings=PASS_ON)(vllm_args)
    app.command(context_settings=PASS_ON)(dedupe)


def generate(context: typer.Context) -> None:
    """Run one greedy turn of the model, without any service; see `sharecap generate --help`."""
    become("workers.commands.generate", *context.args)


def vllm_args(context: typer.Context) -> None:
    """Print the options for vLLM's own server: vllm serve MODEL $(sharecap vllm-args MODEL)."""
    become("workers.commands.vllm_args", *context.args)


def dedupe(context: typer.Context) -> None:
    """Keep the captions that are not too similar to one kept before; see `sharecap dedupe --help`."""
    become("workers.commands.dedupe", *context.args)
