"""`sharecap vllm-args`: print the options that vLLM's own server needs to serve a checkpoint.

Usage: `vllm serve DIR $(sharecap vllm-args DIR)`. vLLM loads the tokenizer, chat template and model from the installed
package through its plugins. No option allows the checkpoint's own code to run.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence

from workers.models.families import family_of
from workers.xcomposer2.checkpoint import read_config

_SPLIT_OR_EXPANDED = re.compile(r"[\s*?\[\]\\]")
"""Characters in the output of `$(...)` that a shell splits at or expands."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the options on one line. Returns the exit status."""
    model = _parser().parse_args(arguments).model
    try:
        print(*options(model))
    except (OSError, ValueError) as error:  # the hub's errors are OSErrors
        print(f"sharecap vllm-args: {error}", file=sys.stderr)
        return 1
    return 0


def options(model: str) -> Iterator[str]:
    """Yield the options and their values.

    Raises FileNotFoundError, and ValueError for a model that vLLM serves without extra options.
    """
    config = read_config(model)
    family = family_of(config)
    if not family.needs_server_args:
        raise ValueError(f"{model}: architectures is {config.get('architectures')}, which needs no extra options")
    for name, value in family.engine_args(model).items():
        if name == "model" or value is None or value is False:
            continue
        word = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        if _SPLIT_OR_EXPANDED.search(word):
            raise ValueError(f"the shell would split or expand {word!r}: use a path without such characters")
        yield f"--{name.replace('_', '-')}"
        yield word


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sharecap vllm-args",
        description="Print the options with which vLLM's own server serves a ShareCaptioner-Video checkpoint.",
        epilog="example: vllm serve MODEL $(sharecap vllm-args MODEL)",
    )
    parser.add_argument("model", help="checkpoint directory or hub id of the ShareCaptioner-Video family")
    return parser


if __name__ == "__main__":
    sys.exit(main())
