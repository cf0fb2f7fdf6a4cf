"""Registers `generate`, `vllm-args` and `dedupe` with the `sharecap` command.

Each command runs as a program of its own, so this module does not import torch or vLLM.
"""

from collections.abc import Sequence

import typer
from sharecap_client.cli.errors import CommandFailed
from sharecap_client.cli.run import become, require

from service.contract.settings import WORKER_ADVICE

HELP_FLAGS = {"-h", "--help"}
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
ENGINE = ("PIL", "safetensors", "sentencepiece", "tokenizers", "torch", "transformers", "vllm")
ENCODER = ("numpy", "torch", "transformers")


def register(app: typer.Typer) -> None:
    """Add the commands to the `sharecap` application."""
    app.command(context_settings=PASS_ON)(generate)
    app.command("vllm-args", context_settings=PASS_ON)(vllm_args)
    app.command(context_settings=PASS_ON)(dedupe)


def generate(context: typer.Context) -> None:
    """Run one greedy turn of a model without the service, and print its text.

    sharecap generate --model DIR --prompt TEXT [--image FILE] [--max-tokens N] [--json]
    """
    _run(context, ENGINE, "workers.commands.generate")


def vllm_args(context: typer.Context) -> None:
    """Print the options with which vLLM's own server serves a ShareCaptioner-Video checkpoint.

    vllm serve MODEL $(sharecap vllm-args MODEL)
    """
    _run(context, ENGINE, "workers.commands.vllm_args")


def dedupe(context: typer.Context) -> None:
    """Drop captions that are too similar to an earlier caption.

    sharecap dedupe captions.jsonl --threshold 0.97
    """
    _run(context, ENCODER, "workers.commands.dedupe")


def _run(context: typer.Context, packages: Sequence[str], module: str) -> None:
    """Become the program. If its packages are missing, it cannot print its help, so the short help is printed here."""
    try:
        require(packages, WORKER_ADVICE)
    except CommandFailed as error:
        if not HELP_FLAGS & set(context.args):
            raise
        print(context.get_help(), error, sep="\n")
        return
    become(module, *context.args)
