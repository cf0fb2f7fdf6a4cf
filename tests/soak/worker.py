"""A real worker process in which only the two models are replaced by scripted ones.

It is forked from a server that has already imported everything, because these tests start many workers.

Two kinds of video are deadly. A job with the seed `DEADLY_SEED` kills the worker when the model is called, as a crash
in a GPU kernel would. A file that ends with `DEADLY_BOX` kills its decoder.
"""

import logging
import os
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

from service.contract.store import leases
from tests.fake_captioner import FakeCaptioner, FakeEncoder
from workers import process, tasks
from workers.models.engine import Done, Piece, Turn
from workers.settings import Settings
from workers.video import frames

DEADLY_SEED = 666
DEADLY_BOX = b"\x00\x00\x00\x10freedeadly!!"
"""An MP4 box that every demuxer skips."""


class ScriptedCaptioner(FakeCaptioner):
    """Generates a few words and takes `SOAK_WORD_S` for each."""

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
    """Run a worker with the settings `env` until it stops; output goes to `log`."""
    os.setsid()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(env)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    leases.LEASE_S = float(env["SOAK_LEASE_S"])
    tasks.RENEW_EVERY_S = 0.3 * leases.LEASE_S
    frames.CHILD = Path(__file__).with_name("decode_child.py")
    sys.exit(process.work(Settings(), load))
