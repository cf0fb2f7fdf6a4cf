"""The engine without the service, for `engine_share.py`: reads requests from stdin and answers each with one line.

    python bench/engine_alone.py DIRECTORY

A request contains videos, the options of their jobs, the answers that the service's engine gave to their turns, and
how many run at once.
The turns are built first, outside the measured time, by running the pipeline with these answers instead of the engine.
Then the engine answers the turns of each video one after another.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the modules of this folder

from bench.service_processes import engine_cpu_s
from service.contract.jobs import Usage, VideoOptions
from workers.main import ENGINE_ENVIRONMENT
from workers.models.engine import Captioner, Done, Features, Piece, Turn
from workers.roles.turn_runner import LONG_PATIENCE_S
from workers.settings import Settings
from workers.standalone import caption_file, standalone_context


class TurnRecorder:
    """A captioner that gives known answers in order and collects the turns. Token counts come from `model`."""

    def __init__(self, model: Captioner, answers: Sequence[str]) -> None:
        self.context_tokens, self.defaults, self.prompts = model.context_tokens, model.defaults, model.prompts
        self.takes_hd_num = model.takes_hd_num
        self.prompt_tokens, self.count_tokens = model.prompt_tokens, model.count_tokens
        self.alive, self.stalled = True, False
        self.turns: list[Turn] = []
        self._answers = list(answers)

    async def generate(self, turn: Turn, request_id: str) -> AsyncGenerator[Piece | Done, None]:
        self.turns.append(turn)
        yield Piece(self._answers[len(self.turns) - 1])
        yield Done(Usage(), "stop")


class NoEncoder:
    """Jobs that sample keyframes at an interval encode nothing."""

    async def encode(self, images: Sequence[Any]) -> Features:
        raise AssertionError("an encoder is not needed")


async def turns_of(
    video: Path, answers: Sequence[str], options: VideoOptions, model: Captioner, directory: Path
) -> list[Turn]:
    """Return the turns of a video whose turns were answered by `answers`."""
    recorder = TurnRecorder(model, answers)
    await caption_file(video, standalone_context(directory, recorder, NoEncoder()), options)
    return recorder.turns


async def answer_all(captioner: Captioner, turns: Sequence[Turn], name: str) -> int:
    """Answer the turns one after another, as patiently as those of a video. Returns the number of generated tokens."""
    tokens = 0
    for number, turn in enumerate(turns):
        async with aclosing(captioner.generate(turn.with_patience(LONG_PATIENCE_S), f"{name}-{number}")) as parts:
            async for part in parts:
                if isinstance(part, Done):
                    tokens += part.usage.completion_tokens
    return tokens


async def answer(captioner: Captioner, request: dict[str, Any], directory: Path, name: str) -> dict[str, float]:
    """Run one request. Returns the fields of `engine_share.Side`."""
    pairs = zip(request["videos"], request["answers"], strict=True)
    options = VideoOptions(keyframes="interval", **request["options"])
    chains = [await turns_of(Path(video), answers, options, captioner, directory) for video, answers in pairs]
    cpu_s, start = engine_cpu_s(os.getpid()), time.monotonic()
    places = asyncio.Semaphore(request["at_once"])

    async def run(turns: Sequence[Turn], chain: int) -> int:
        async with places:
            return await answer_all(captioner, turns, f"{name}-{chain}")

    tokens = sum(await asyncio.gather(*(run(turns, chain) for chain, turns in enumerate(chains))))
    wall_s = time.monotonic() - start
    return {"tokens": tokens, "wall_s": wall_s, "engine_cpu_s": engine_cpu_s(os.getpid()) - cpu_s}


async def serve(directory: Path) -> None:
    """Answer the requests on stdin until it is closed."""
    from workers.models.vllm_captioner import VllmCaptioner  # noqa: PLC0415 (imports vLLM, which reads the environment)

    captioner = VllmCaptioner.start(Settings(data_dir=directory))
    print("ready", flush=True)
    number = 0
    while line := await asyncio.to_thread(sys.stdin.readline):
        number += 1
        print(json.dumps(await answer(captioner, json.loads(line), directory, f"alone-{number}")), flush=True)
    captioner.stop()


def main() -> None:
    for name, value in ENGINE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    asyncio.run(serve(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
