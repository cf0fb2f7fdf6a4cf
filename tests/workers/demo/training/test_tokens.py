"""The trained vocabulary."""

from pathlib import Path

import sentencepiece

from workers.demo import examples
from workers.demo.training import tokens


def test_the_vocabulary_is_like_the_published_one(tmp_path: Path) -> None:
    tokens.train(tmp_path / "tokenizer.model")
    vocabulary = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert (vocabulary.bos_id(), vocabulary.eos_id(), vocabulary.vocab_size()) == (1, 2, tokens.VOCABULARY)
    for text in (" two  spaces ", "naïve 🎈\n\t漢字", "The red circle moves to the left."):
        assert vocabulary.decode(vocabulary.encode(text)) == text
    ids = vocabulary.encode(examples.chat_turn("hi"))
    assert ids[0] == vocabulary.piece_to_id(tokens.CHAT_OPEN) and vocabulary.piece_to_id(tokens.CHAT_CLOSE) in ids
