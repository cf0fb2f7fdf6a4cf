"""The recaption role: a short text-to-video prompt -> its dense caption. One text call."""

from service.contract.jobs import RecaptionOptions
from workers.attempt import Attempt
from workers.models.engine import Turn
from workers.roles.turns import DeltaTarget, max_tokens

DEFAULT_MAX_TOKENS = 1024


async def write_out(attempt: Attempt) -> str:
    """Return the dense caption of the job's prompt."""
    options = attempt.record.options
    assert isinstance(options, RecaptionOptions)
    captioner = attempt.tools.captioner
    answer = max_tokens(options, DEFAULT_MAX_TOKENS, captioner)
    turn = Turn(captioner.dialect.recaption(options.prompt), max_tokens=answer, decoding=options)
    with attempt.timed("captioning"):
        return await attempt.turns.run(turn, DeltaTarget())
