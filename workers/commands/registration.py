"""Registers `generate`, `vllm-args`, `dedupe` and `ray` with the `sharecap` command.

The first three run as programs of their own, so this module does not import torch or vLLM.
"""

from collections.abc import Sequence
from itertools import pairwise

import typer
from sharecap_client.cli.errors import CommandFailed
from sharecap_client.cli.run import become, require

from service.contract.model_hub import ModelUnavailable, check_hub, is_hub_id
from service.contract.settings import WORKER_ADVICE
from workers.commands.ray_data.command import ray

HELP_FLAGS = {"-h", "--help"}
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
ENGINE = ("PIL", "safetensors", "sentencepiece", "tokenizers", "torch", "transformers", "vllm")
ENCODER = ("numpy", "torch", "transformers")


def register(app: typer.Typer) -> None:
    """Add the commands to the `sharecap` application."""
    app.command(context_settings=PASS_ON)(generate)
    app.command("vllm-args", context_settings=PASS_ON)(vllm_args)
    app.command(context_settings=PASS_ON)(dedupe)
    app.command()(ray)


def generate(context: typer.Context) -> None:
    """Run one greedy turn of a model without the service, and print its text.

    sharecap generate --model DIR --prompt TEXT [--image FILE] [--max-tokens N] [--json]
    """
    _run(context, ENGINE, "workers.commands.generate", _value(context.args, "--model"))


def vllm_args(context: typer.Context) -> None:
    """Print the options with which vLLM's own server serves a ShareCaptioner-Video checkpoint.

    vllm serve MODEL $(sharecap vllm-args MODEL)
    """
    _run(context, ENGINE, "workers.commands.vllm_args", next(iter(context.args), None))


def dedupe(context: typer.Context) -> None:
    """Drop captions that are too similar to an earlier caption.

    sharecap dedupe captions.jsonl --threshold 0.97
    """
    _run(context, ENCODER, "workers.commands.dedupe", _value(context.args, "--encoder"))


def _run(context: typer.Context, packages: Sequence[str], module: str, model: str | None) -> None:
    """Become the program, which uses `model`.

    If its packages are missing, it cannot print its help, so the short help is printed here.
    """
    wants_help = bool(HELP_FLAGS & set(context.args))
    try:
        require(packages, WORKER_ADVICE)
        env = check_hub(model) if model and is_hub_id(model) and not wants_help else {}
    except ModelUnavailable as error:
        raise CommandFailed(str(error)) from None
    except CommandFailed as error:
        if not wants_help:
            raise
        print(context.get_help(), error, sep="\n")
        return
    become(module, *context.args, **env)


def _value(arguments: Sequence[str], flag: str) -> str | None:
    """Return the value of a flag, written `--flag value` or `--flag=value`."""
    words = [word for argument in arguments for word in argument.split("=", 1)] if arguments else []
    return next((value for word, value in pairwise(words) if word == flag), None)
