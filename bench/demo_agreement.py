"""Whether vLLM through the plugin and the training's own plain forward pass say the same, token for token, greedily.

    python bench/demo_agreement.py --clips 200

For each held-out clip one turn of every role: first frame, differential, summary, recaption. Both read the exported
checkpoint in float32. Prints each disagreement and a table; the exit status is 1 if there was any.
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

from workers.demo import language, scenes, world
from workers.demo.training import export, samples, tokens
from workers.demo.training.model import DemoModel
from workers.prompts.trained import TRAINED_PROMPTS as prompts
from workers.video.collage import stack_pair
from workers.xcomposer2 import check_registered, engine_args
from workers.xcomposer2.hd_tiling import plan_tiling
from workers.xcomposer2.image import crops
from workers.xcomposer2.tokenizer import load_tokenizer, stop_ids, turn_ids

CHECKPOINT = Path(__file__).parents[1] / "workers" / "demo" / "checkpoint"
SEED = world.HELD_OUT_SEED + 2_000_000
MAX_TOKENS = 256


@dataclass(frozen=True)
class Turn:
    role: str
    prompt: str
    image: Image.Image | None = None


def turns_of(seed: int) -> list[Turn]:
    """Return one turn of each role about the scene of this seed."""
    scene, rng = scenes.make_scene(seed), random.Random(seed)
    drawn = [scenes.draw(state, scene.width, scene.height, seed) for state in scene.states]
    shown = [Image.fromarray(frame) for frame in scenes.through_h264(drawn, crf=23)]
    previous, (_, said) = language.first_frame(rng, scene.states[0]), language.reference(scene)[0]
    return [
        Turn("first frame", prompts.FIRST_FRAME, shown[0]),
        Turn("differential", prompts.differential(0, 0.0, 2.0, previous), stack_pair(shown[0], shown[1])),
        Turn("summary", prompts.summary([(0.0, said), *language.reference(scene)[1:]])),
        Turn("recaption", samples.recaption(rng)[0]),
    ]


@torch.no_grad()
def plain(model: DemoModel, sp: sentencepiece.SentencePieceProcessor, turn: Turn, hd_num: int) -> list[int]:
    """Answer by the training model's own forward pass."""
    ids = torch.tensor([[sp.bos_id(), *sp.encode(samples.turn(turn.prompt))]])
    image = None
    if turn.image is not None:
        tiling = plan_tiling(*turn.image.size, hd_num, model.sizes.crop)
        merged = model.see(crops(turn.image, tiling))[1]
        image = model.image_tokens(merged[:1], merged[1:].reshape(1, tiling.rows, tiling.cols, *merged.shape[1:]))
    return model.greedy(ids, image, {sp.piece_to_id(tokens.CHAT_CLOSE), sp.eos_id()}, MAX_TOKENS)[0]


def through_vllm(checkpoint: Path, turns: list[Turn], hd_num: int) -> list[list[int]]:
    """Answer all turns by one vLLM engine."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    arguments = engine_args(str(checkpoint), dtype="float32", enforce_eager=True)
    arguments["limit_mm_per_prompt"] = {"image": 1}
    check_registered()
    from vllm import LLM, SamplingParams  # noqa: PLC0415 (reads the environment when imported)

    tokenizer = load_tokenizer(arguments["tokenizer"])
    asked: list[Any] = []
    for turn in turns:
        asked.append({"prompt_token_ids": turn_ids(tokenizer, turn.prompt, image=turn.image is not None)})
        if turn.image is not None:
            asked[-1] |= {"multi_modal_data": {"image": turn.image}, "mm_processor_kwargs": {"hd_num": hd_num}}
    sampling = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, stop_token_ids=stop_ids(tokenizer))
    outputs = LLM(**arguments).generate(asked, sampling, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def compare(checkpoint: Path, clips: int, hd_num: int) -> Counter[str]:
    """Return how many turns of each role agree ("role: same") and how many there are ("role: all")."""
    turns = [turn for k in range(clips) for turn in turns_of(SEED + k)]
    said = through_vllm(checkpoint, turns, hd_num)
    model = export.read(checkpoint)
    sp = sentencepiece.SentencePieceProcessor(model_file=str(checkpoint / "tokenizer.model"))
    tally: Counter[str] = Counter()
    for turn, ids in zip(turns, said, strict=True):
        expected = plain(model, sp, turn, hd_num)
        tally[f"{turn.role}: same"] += ids == expected
        tally[f"{turn.role}: all"] += 1
        if ids != expected:
            print(f"{turn.role}: vLLM says {sp.decode(ids)!r}, the plain forward {sp.decode(expected)!r}")
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--hd-num", type=int, default=export.HD_NUM)
    arguments = parser.parse_args()
    tally = compare(arguments.checkpoint, arguments.clips, arguments.hd_num)
    roles = [name.removesuffix(": all") for name in tally if name.endswith(": all")]
    for role in roles:
        print(f"{role}: {tally[f'{role}: same']} of {tally[f'{role}: all']} agree")
    return int(any(tally[f"{role}: same"] != tally[f"{role}: all"] for role in roles))


if __name__ == "__main__":
    sys.exit(main())
