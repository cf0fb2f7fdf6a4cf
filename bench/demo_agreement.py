"""Compares greedy answers of vLLM through the plugin with those of the training code's plain forward pass.

    python bench/demo_agreement.py --clips 200

For each held-out clip there is one turn of every role. Both sides read the exported checkpoint in float32 and must
generate the same tokens. The script prints each disagreement and a count per role; it exits with status 1 if any turn
disagrees.
"""

import argparse
import os
import random
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from PIL import Image

from workers.demo import examples, language, scenes, world
from workers.demo.training import export, tokens
from workers.demo.training.model import DemoModel
from workers.prompts.trained import TRAINED_PROMPTS
from workers.video.collage import stack_all, stack_pair
from workers.xcomposer2.hd_tiling import plan_tiling
from workers.xcomposer2.image import crops
from workers.xcomposer2.plugin import check_registered, engine_args
from workers.xcomposer2.tokenizer import load_tokenizer, stop_ids, turn_ids

CHECKPOINT = Path(__file__).parents[1] / "workers" / "demo" / "checkpoint"
FIRST_SEED = world.HELD_OUT_SEED + 2_000_000
MAX_TOKENS = 256
FAST_HD_NUM = 8


@dataclass(frozen=True)
class Question:
    """One prompt of a role, with its image cut into at most `hd_num` crops."""

    role: str
    prompt: str
    image: Image.Image | None = None
    hd_num: int = 1


def questions_about(seed: int, hd_num: int) -> list[Question]:
    """Return one question of each role about the scene of this seed."""
    scene, rng = scenes.make_scene(seed), random.Random(seed)
    drawn = [scenes.draw(state, scene.width, scene.height, seed) for state in scene.states]
    shown = [Image.fromarray(frame) for frame in scenes.through_h264(drawn, crf=23)]
    reference = language.reference(scene)
    previous = language.first_frame(rng, scene.states[0])
    prompts = TRAINED_PROMPTS
    pair = stack_pair(shown[0], shown[1])
    return [
        Question("first frame", prompts.FIRST_FRAME, shown[0], hd_num),
        Question("differential", prompts.differential(0, 0.0, 2.0, previous), pair, hd_num),
        Question("fast", prompts.FAST, stack_all(shown), FAST_HD_NUM),
        Question("summary", prompts.summary([(0.0, reference[0][1]), *reference[1:]])),
        Question("recaption", examples.recaption(rng).prompt),
    ]


@torch.no_grad()
def plain_answer(model: DemoModel, vocabulary: sentencepiece.SentencePieceProcessor, question: Question) -> list[int]:
    """Return the answer's tokens by the training model's own forward pass."""
    ids = torch.tensor([[vocabulary.bos_id(), *vocabulary.encode(examples.chat_turn(question.prompt))]])
    image = None
    if question.image is not None:
        tiling = plan_tiling(*question.image.size, question.hd_num, model.sizes.crop)
        merged = model.see(crops(question.image, tiling))[1]
        image = model.image_tokens(merged[:1], merged[1:].reshape(1, tiling.rows, tiling.cols, *merged.shape[1:]))
    ends = {vocabulary.piece_to_id(tokens.CHAT_CLOSE), vocabulary.eos_id()}
    return model.greedy(ids, image, ends, MAX_TOKENS)[0]


def vllm_answers(checkpoint: Path, questions: list[Question]) -> list[list[int]]:
    """Return the tokens of all answers from one vLLM engine."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    arguments = engine_args(str(checkpoint), dtype="float32", enforce_eager=True)
    arguments["limit_mm_per_prompt"] = {"image": 1}
    check_registered()
    from vllm import LLM, SamplingParams  # noqa: PLC0415 (reads the environment when imported)

    tokenizer = load_tokenizer(arguments["tokenizer"])
    requests: list[Any] = []
    for question in questions:
        with_image = question.image is not None
        request: dict[str, Any] = {"prompt_token_ids": turn_ids(tokenizer, question.prompt, image=with_image)}
        if with_image:
            request["multi_modal_data"] = {"image": question.image}
            request["mm_processor_kwargs"] = {"hd_num": question.hd_num}
        requests.append(request)
    sampling = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, stop_token_ids=stop_ids(tokenizer))
    outputs = LLM(**arguments).generate(requests, sampling, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def compare(checkpoint: Path, clips: int, hd_num: int) -> tuple[Counter[str], Counter[str]]:
    """Return the number of questions per role whose answers agree, and the number of all questions per role."""
    questions = [question for k in range(clips) for question in questions_about(FIRST_SEED + k, hd_num)]
    answers = vllm_answers(checkpoint, questions)
    model = export.read(checkpoint)
    vocabulary = sentencepiece.SentencePieceProcessor(model_file=str(checkpoint / "tokenizer.model"))
    equal: Counter[str] = Counter()
    for question, ids in zip(questions, answers, strict=True):
        expected = plain_answer(model, vocabulary, question)
        equal[question.role] += ids == expected
        if ids != expected:
            texts = vocabulary.decode(ids), vocabulary.decode(expected)
            print(f"{question.role}: vLLM answers {texts[0]!r}, the plain forward pass {texts[1]!r}")
    return equal, Counter(question.role for question in questions)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--clips", type=int, default=200, help="number of held-out clips")
    parser.add_argument("--hd-num", type=int, default=export.HD_NUM, help="crops of first frames and pairs")
    arguments = parser.parse_args()
    equal, total = compare(arguments.checkpoint, arguments.clips, arguments.hd_num)
    for role, count in total.items():
        print(f"{role}: {equal[role]} of {count} agree")
    return int(equal != total)


if __name__ == "__main__":
    sys.exit(main())
