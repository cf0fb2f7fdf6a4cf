"""One greedy turn of a checkpoint, from the command line: `sharecap generate --model DIR --prompt TEXT`.

Goes the way the service goes (the plugin, vLLM, one chat turn) with nothing around it,
so it answers "what does this checkpoint say to exactly this?". Only the result is on stdout; what vLLM has to say
goes to stderr.
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

from workers.xcomposer2 import check_registered, engine_args
from workers.xcomposer2.checkpoint import read_config
from workers.xcomposer2.hd_tiling import plan_tiling


@dataclass(frozen=True)
class Turn:
    """A finished turn: all prompt tokens, those of them that are the image, the answer's ids (end mark
    included when generated) and the text before the end mark."""

    prompt_tokens: int
    image_tokens: int
    token_ids: list[int]
    text: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one turn and print it; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        with _stdout_kept_clean():
            turn = run(options)
    except Exception as error:  # whatever vLLM raises: a user wants its reason, not its stack
        print(f"sharecap generate: {_first_line(error)}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(turn), ensure_ascii=False) if options.json else turn.text)
    return 0


def run(options: argparse.Namespace) -> Turn:
    """Load the checkpoint, run one greedy turn and return it. Raises whatever stands in the way, ValueError mostly."""
    image = _open_image(options.image) if options.image else None
    _hush()
    arguments = engine_args(options.model, dtype=options.dtype, enforce_eager=True, use_tqdm_on_load=False)
    from workers.xcomposer2.config import XComposer2Config  # noqa: PLC0415
    from workers.xcomposer2.tokenizer import load_tokenizer, stop_ids, turn_ids  # noqa: PLC0415

    config = XComposer2Config.from_published(read_config(options.model))
    tokenizer = load_tokenizer(arguments["tokenizer"])
    prompt: Any = {"prompt_token_ids": turn_ids(tokenizer, options.prompt, image=image is not None)}
    length = len(prompt["prompt_token_ids"])
    if image is not None:
        hd_num = config.hd_num if options.hd_num is None else options.hd_num
        tiling = plan_tiling(*image.size, hd_num, config.vision_config.image_size)
        length += tiling.image_tokens(config.merged_side) - 1  # the placeholder makes room
        prompt |= {"multi_modal_data": {"image": image}, "mm_processor_kwargs": {"hd_num": hd_num}}
    room = config.max_position_embeddings - length
    if room < 1:
        raise ValueError(f"the prompt has {length} tokens, and the checkpoint takes {config.max_position_embeddings}")
    arguments["limit_mm_per_prompt"] = {"image": int(image is not None)}

    check_registered()
    from vllm import LLM, SamplingParams  # noqa: PLC0415

    ends = stop_ids(tokenizer)
    sampling = SamplingParams(temperature=0, max_tokens=min(options.max_tokens, room), stop_token_ids=ends)
    output = LLM(**arguments).generate(prompt, sampling, use_tqdm=False)[0]
    token_ids, prompt_ids = list(output.outputs[0].token_ids), list(output.prompt_token_ids or ())
    said = token_ids[:-1] if token_ids and token_ids[-1] in ends else token_ids
    return Turn(
        prompt_tokens=len(prompt_ids),
        image_tokens=prompt_ids.count(config.image_token_id),
        token_ids=token_ids,
        text=str(tokenizer.decode(said)),
    )


def _hush() -> None:
    """One process, a small cache, and errors only; most of it is read when vLLM is imported."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sharecap generate", description="Run one greedy turn of a checkpoint.")
    parser.add_argument("--model", required=True, help="checkpoint directory or hub id")
    parser.add_argument("--prompt", required=True, help="the user's text")
    parser.add_argument("--image", type=Path, help="picture to show before the text")
    parser.add_argument("--hd-num", type=_positive, help="most crops of the picture (default: the checkpoint's)")
    parser.add_argument("--max-tokens", type=_positive, default=512, help="most tokens of the answer (default: 512)")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
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
        raise ValueError(f"{path} cannot be read as a picture: {error}") from None


@contextlib.contextmanager
def _stdout_kept_clean() -> Iterator[None]:
    """Send whatever libraries write to stdout, C++ included, to stderr meanwhile."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _first_line(error: Exception) -> str:
    """The innermost cause's first line: vLLM wraps an error in several of its own."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
