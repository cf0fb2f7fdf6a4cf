"""The options with which vLLM's own server serves a checkpoint of the ShareCaptioner-Video family.

What `sharecap vllm-args` runs: `vllm serve DIR $(sharecap vllm-args DIR)`. Tokenizer, chat template and model come from
the installed package through vLLM's plugins; no option runs the checkpoint's own code.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence

from workers.xcomposer2 import engine_args

_SPLIT_OR_EXPANDED = re.compile(r"[\s*?\[\]\\]")
"""What a shell would not leave alone in the outcome of `$(...)`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the options on one line; return the exit status."""
    parser = argparse.ArgumentParser(prog="sharecap vllm-args", description="Print what `vllm serve MODEL` needs.")
    parser.add_argument("model", help="checkpoint directory or hub id of the ShareCaptioner-Video family")
    model = parser.parse_args(arguments).model
    try:
        print(*options(model))
    except (OSError, ValueError) as error:  # the hub's errors are OSErrors
        print(f"sharecap vllm-args: {error}", file=sys.stderr)
        return 1
    return 0


def options(model: str) -> Iterator[str]:
    """Yield the words. Raises FileNotFoundError, and ValueError for another architecture, which needs none of them."""
    for name, value in engine_args(model).items():
        if name == "model" or value is None or value is False:
            continue
        word = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        if _SPLIT_OR_EXPANDED.search(word):
            raise ValueError(
                f"{word!r} would not survive the shell: give the checkpoint a path without such characters"
            )
        yield f"--{name.replace('_', '-')}"
        yield word


if __name__ == "__main__":
    sys.exit(main())
