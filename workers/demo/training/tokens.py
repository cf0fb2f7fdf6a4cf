"""The demo model's SentencePiece vocabulary, trained in seconds on its own language.

Its settings are those of the published model: BPE with byte fallback, identity normaliser, no dummy prefix, whitespace
kept, chat markers as user-defined pieces. General English comes from the standard library's help texts.
"""

import pydoc_data.topics
import random
from pathlib import Path

import sentencepiece

from workers.demo import examples

VOCABULARY = 1024
CHAT_OPEN, CHAT_CLOSE = "[UNUSED_TOKEN_146]", "[UNUSED_TOKEN_145]"
CHAT_MARKERS = ("[UNUSED_TOKEN_0]", "[UNUSED_TOKEN_1]", "[UNUSED_TOKEN_2]", "[UNUSED_TOKEN_3]", CHAT_CLOSE, CHAT_OPEN)


def corpus(seed: int = 0) -> list[str]:
    """Return lines from examples of every role, and lines of general English."""
    rng = random.Random(seed)
    lines = []
    for _ in range(3000):
        step = examples.step_to(rng, examples.random_state(rng, 0.1))
        turns = (
            examples.first_frame(rng, step[1]),
            examples.differential(rng, *step),
            examples.summary(rng, rng.randint(1, 6)),
            examples.recaption(rng),
        )
        lines += [line for turn in turns for text in turn for line in text.split("\n") if line]
        lines += ["user", "assistant"]
    prose = [line for topic in pydoc_data.topics.topics.values() for line in topic.split("\n")]
    return lines + rng.sample([line.strip() for line in prose if len(line.strip()) > 40], 5000)


def train(path: Path) -> None:
    """Train a vocabulary and write it to `path` (a `tokenizer.model`)."""
    prefix = path.with_suffix("")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_prefix=str(prefix),
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        user_defined_symbols=list(CHAT_MARKERS),
        character_coverage=0.9999,
        minloglevel=2,
    )
    prefix.with_suffix(".vocab").unlink()
