"""Runs vLLM with the plugin on the questions of the agreement tests. A program, because an engine sets up its process.

`python -m tests.reference.vllm_answers ANSWERS < REQUESTS`, both JSON: a list with an element for each checkpoint. All
questions are submitted together, so that vLLM batches them. The questions marked `alone` are then repeated one at a
time.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "TQDM_DISABLE": "1"}

from vllm import LLM, SamplingParams

from tests.reference.checkpoint import random_image
from workers.xcomposer2.plugin import check_registered, engine_args, register
from workers.xcomposer2.tokenizer import load_tokenizer, stop_ids, turn_ids


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Start an engine with the checkpoint of the request, and return its answers."""
    model = request["model"]
    tokenizer = load_tokenizer(model)
    llm = LLM(**engine_args(model, dtype="float32", enforce_eager=True, **request["engine"]))

    def prompt(question: dict[str, Any]) -> Any:
        size, hd_num = question["size"], question["hd_num"]
        parts: dict[str, Any] = {"prompt_token_ids": turn_ids(tokenizer, question["prompt"], image=size is not None)}
        if size is not None:
            parts["multi_modal_data"] = {"image": random_image(tuple(size), question["seed"])}
        if hd_num is not None:
            parts["mm_processor_kwargs"] = {"hd_num": hd_num}
        return parts

    def ask(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        sampling = SamplingParams(temperature=0, max_tokens=request["max_tokens"], stop_token_ids=stop_ids(tokenizer))
        outputs = llm.generate([prompt(question) for question in batch], sampling, use_tqdm=False)
        return [{"prompt": len(o.prompt_token_ids or ()), "ids": list(o.outputs[0].token_ids)} for o in outputs]

    def error_of(question: dict[str, Any]) -> str:
        try:
            ask([question])
        except ValueError as error:
            return str(error)
        return ""

    answers = {
        "together": ask(request["questions"]),
        "alone": [ask([question])[0] for question in request["questions"] if question.get("alone")],
        "refused": [error_of(question) for question in request["refused"]],
    }
    llm.llm_engine.engine_core.shutdown()
    return answers


def main() -> None:
    """Read the requests, run them and write the answers."""
    register()
    register()  # a repeated call must be harmless
    check_registered()
    Path(sys.argv[1]).write_text(json.dumps([answer(request) for request in json.load(sys.stdin)]))


if __name__ == "__main__":
    main()
