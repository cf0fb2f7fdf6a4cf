"""A real worker process with a scripted model: everything but the two models is the product's own.

It is forked from a server that has imported everything already: so many of them are started here that it counts.

Two kinds of video end badly here. One that is asked for with the seed `DEADLY_SEED` ends the worker as soon as the
model is asked about it, as a crash in a GPU's kernel would; one whose file ends with `DEADLY_BOX` ends its decoder.
"""

import logging
import os
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

from service.contract.store import store
from tests.fake_captioner import FakeCaptioner, FakeEncoder
from workers import process, tasks
from workers.models.engine import Done, Piece, Turn
from workers.settings import Settings
from workers.video import frames

DEADLY_SEED = 666
DEADLY_BOX = b"\x00\x00\x00\x10freedeadly!!"
"""An MP4 box that every reader skips."""


class ScriptedCaptioner(FakeCaptioner):
    """Says a few words, `SOAK_WORD_S` each."""

    async def generate(self, turn: Turn, request_id: str) -> AsyncGenerator[Piece | Done, None]:
        if turn.decoding.seed == DEADLY_SEED:
            os._exit(1)
        self.turns.clear()
        self.answers.append("a few words of it")
        async for part in super().generate(turn, request_id):
            yield part


def load(settings: Settings) -> process.Models:
    captioner = ScriptedCaptioner(delay_s=float(os.environ["SOAK_WORD_S"]))
    return process.Models(captioner, FakeEncoder(), settings.slots or 4, stop=lambda: None)


def main(env: dict[str, str], log: Path) -> None:
    """Be a worker with these settings, until the end of the process."""
    os.setsid()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(env)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    store.LEASE_S = float(env["SOAK_LEASE_S"])
    tasks.RENEW_EVERY_S = 0.3 * store.LEASE_S
    frames.CHILD = Path(__file__).with_name("decode_child.py")
    sys.exit(process.work(Settings(), load))
