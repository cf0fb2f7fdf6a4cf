"""The recaption role: expands a short text-to-video prompt into a dense caption with one text-only model call."""

from service.contract.events import Caption
from service.contract.jobs import RecaptionOptions
from workers.attempt import Attempt
from workers.models.engine import Turn
from workers.roles.turn_runner import DeltaTarget, max_answer_tokens

DEFAULT_MAX_TOKENS = 1024


async def expand(attempt: Attempt, options: RecaptionOptions) -> Caption:
    """Return the dense caption of the prompt in `options`."""
    captioner = attempt.context.captioner
    max_tokens = max_answer_tokens(options, DEFAULT_MAX_TOKENS, captioner)
    turn = Turn(captioner.prompts.recaption(options.prompt), max_tokens=max_tokens, decoding=options)
    with attempt.timed("captioning"):
        answer = await attempt.turn_runner.run(turn, DeltaTarget())
    return Caption(text=answer.text, finish_reason=answer.finish_reason)
