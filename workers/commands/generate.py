"""`sharecap generate --model DIR --prompt TEXT`: run one greedy turn of a checkpoint.

Uses the same plugin, engine and chat layout as the service, but nothing else of it. This answers "what does this
checkpoint say to exactly this prompt?". Only the result goes to stdout; vLLM's messages go to stderr.
"""

import argparse
import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from workers.models.engine import OfflineTurns, Turn
from workers.models.families import ModelFamily, family_of
from workers.xcomposer2.checkpoint import read_config


@dataclass(frozen=True)
class GeneratedTurn:
    """The result of a turn.

    `prompt_tokens` includes the `image_tokens`. `token_ids` includes the stop token if the model generated it; `text`
    does not.
    """

    prompt_tokens: int
    image_tokens: int
    token_ids: list[int]
    text: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one turn and print the result. Returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        with _stdout_redirected():
            result = run(options)
    except Exception as error:  # vLLM raises many types; the user needs the reason, not a stack trace
        print(f"sharecap generate: {_first_line(error)}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(result), ensure_ascii=False) if options.json else result.text)
    return 0


def run(options: argparse.Namespace) -> GeneratedTurn:
    """Load the checkpoint and run one greedy turn. Raises ValueError for invalid input, and vLLM's exceptions."""
    images = (_open_image(options.image),) if options.image else ()
    _silence_libraries()
    family, turns = _load(options.model)
    turn = Turn(options.prompt, images, options.hd_num, options.max_tokens)
    room = turns.context_tokens - turns.prompt_tokens(turn)
    if room < 1:
        length = turns.prompt_tokens(turn)
        raise ValueError(f"the prompt has {length} tokens, and the checkpoint takes {turns.context_tokens}")
    arguments = family.engine_args(options.model) | {
        "dtype": options.dtype,
        "enforce_eager": True,
        "use_tqdm_on_load": False,
        "limit_mm_per_prompt": {"image": len(images)},
    }
    family.check_installed()
    return _generate(arguments, turns, turn.with_max_tokens(min(turn.max_tokens, room)))


def _load(model: str) -> tuple[ModelFamily, OfflineTurns]:
    config = read_config(model)
    family = family_of(config)
    if family.offline_turns is None:
        raise ValueError(f"{model}: architectures is {config.get('architectures')}, which generate does not support")
    return family, family.offline_turns(model)


def _generate(arguments: dict[str, Any], turns: OfflineTurns, turn: Turn) -> GeneratedTurn:
    """Start the engine with these arguments and run `turn`."""
    from vllm import LLM, SamplingParams  # noqa: PLC0415 (slow to import, and reads the environment)

    stop_ids = list(turns.stop_ids)
    sampling = SamplingParams(temperature=0, max_tokens=turn.max_tokens, stop_token_ids=stop_ids)
    [output] = LLM(**arguments).generate(turns.prompt(turn), sampling, use_tqdm=False)
    token_ids, prompt_ids = list(output.outputs[0].token_ids), list(output.prompt_token_ids or ())
    stopped = bool(token_ids) and token_ids[-1] in stop_ids
    return GeneratedTurn(
        prompt_tokens=len(prompt_ids),
        image_tokens=prompt_ids.count(turns.image_token_id),
        token_ids=token_ids,
        text=turns.decode(token_ids[:-1] if stopped else token_ids),
    )


def _silence_libraries() -> None:
    """Configure one process, a small cache and error messages only. vLLM reads most of this when it is imported."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sharecap generate",
        description="Run one greedy turn of a model without the service, and print its text.",
        epilog="example: sharecap generate --model DIR --prompt 'Describe the image.' --image frame.jpg",
    )
    parser.add_argument("--model", required=True, help="checkpoint directory or hub id")
    parser.add_argument("--prompt", required=True, help="the user's text")
    parser.add_argument("--image", type=Path, help="image to show before the text")
    parser.add_argument("--hd-num", type=_positive, help="maximum crops of the image (default: the checkpoint's)")
    parser.add_argument("--max-tokens", type=_positive, default=512, help="maximum tokens of the answer (default: 512)")
    dtypes = ["auto", "float32", "bfloat16", "float16"]
    parser.add_argument("--dtype", default="auto", choices=dtypes, help="type of the weights (default: as stored)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the text")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _open_image(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from None


@contextlib.contextmanager
def _stdout_redirected() -> Iterator[None]:
    """Redirect stdout to stderr inside the context, including what C++ libraries write."""
    sys.stdout.flush()
    original = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(original, 1)
        os.close(original)


def _first_line(error: Exception) -> str:
    """Return the first line of the innermost cause; vLLM wraps errors several times."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
