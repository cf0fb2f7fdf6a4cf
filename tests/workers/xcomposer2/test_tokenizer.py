"""The tokenizer agrees with SentencePiece, for a small model trained here and for the published vocabulary."""

import copy
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from sentencepiece import sentencepiece_model_pb2 as spm
from tokenizers.decoders import DecodeStream

from tests.reference.checkpoint import train_tokenizer
from workers.xcomposer2.tokenizer import (
    CLOSE_TURN,
    OPEN_TURN,
    TextStream,
    XComposer2Tokenizer,
    load_tokenizer,
    neutralise,
    stop_ids,
    turn_ids,
)

ODD = ["👩‍👩‍👧", "🏳️‍🌈", "é", "e\u0301", "你好", "——", "…", "……", "<s>", "</s>", "<unk>", "<0x0A>", "[UNUSED_TOKEN_146]"]
ODD += ["[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_14", "UNUSED_TOKEN_0]", "\0", "\u200b", "\r\n", "\t", "▁", "\ufeff", "İ"]
RANGES = [
    (0x00, 0x7F),
    (0x80, 0x24F),
    (0x3040, 0x30FF),
    (0x4E00, 0x9FFF),
    (0x1F300, 0x1FAFF),
    (0, 0xD7FF),
    (0xE000, 0x10FFFF),
]


@pytest.fixture(scope="module", params=["trained", "published"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "published":
        return request.getfixturevalue("tokenizer_model")
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def ours(model: Path) -> XComposer2Tokenizer:
    return load_tokenizer(model)


@pytest.fixture(scope="module")
def theirs(model: Path) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(model))


def random_text(rng: random.Random, pieces: list[str]) -> str:
    """Return a text of pieces, words, repeated characters, any script, and strings like special tokens."""

    def character() -> str:
        return chr(rng.randint(*rng.choice(RANGES)))

    makers: list[Callable[[], str]] = [
        lambda: rng.choice(pieces).replace("▁", " "),
        lambda: rng.choice(ODD),
        character,
        lambda: rng.choice([" ", "\n", "a", "=", "0", character()]) * rng.randint(1, 12),
        lambda: "".join(rng.choices("etaoinshrdlu .,0123456789", k=rng.randint(1, 24))),
    ]
    return "".join(rng.choice(makers)() for _ in range(rng.randint(0, 24)))


def test_ids_and_text_of_ten_thousand_strings(ours: XComposer2Tokenizer, theirs: SentencePieceProcessor) -> None:
    rng = random.Random(20_240_606)
    pieces = [theirs.id_to_piece(number) for number in range(theirs.vocab_size())]
    for _ in range(10_000):
        text = random_text(rng, pieces)
        ids = theirs.encode(text)
        assert ours.encode(text, add_special_tokens=False) == ids, text
        assert ours.decode(ids) == theirs.decode(ids)
        assert neutralise(neutralise(text)) == neutralise(text)


def test_arbitrary_ids_decode_as_in_sentencepiece(ours: XComposer2Tokenizer, theirs: SentencePieceProcessor) -> None:
    rng = random.Random(3)
    first_byte_id = theirs.piece_to_id("<0x00>")
    for _ in range(3_000):
        ids = [
            rng.randrange(first_byte_id, first_byte_id + 256)
            if rng.random() < 0.6
            else rng.randrange(1, theirs.vocab_size())
            for _ in range(rng.randint(1, 16))
        ]
        assert ours.decode(ids) == theirs.decode(ids)
        stream = TextStream(ours, skip_reserved=False)
        assert "".join(stream.push([number]) for number in ids) + stream.finish() == theirs.decode(ids)


def test_streams_emit_whole_characters(ours: XComposer2Tokenizer, theirs: SentencePieceProcessor) -> None:
    """Our stream and vLLM's (the tokenizers library's) both emit whole characters and the complete text."""
    rng = random.Random(5)
    for _ in range(300):
        text = "".join(rng.choices(["héllo ", "你好", "👩‍👩‍👧", "a", "𝔘", "\n", "—", "ॐ"], k=rng.randint(1, 20)))
        ids = theirs.encode(text)
        stream, theirs_stream = TextStream(ours), DecodeStream(skip_special_tokens=True)
        parts = [stream.push([number]) for number in ids]
        other = [theirs_stream.step(ours.backend_tokenizer, number) or "" for number in ids]
        assert "".join(parts) == "".join(other) == text
        assert not any("\ufffd" in part for part in parts + other)


def test_chat_tokens_are_looked_up_by_name(ours: XComposer2Tokenizer, theirs: SentencePieceProcessor) -> None:
    assert stop_ids(ours) == [theirs.piece_to_id(CLOSE_TURN), theirs.eos_id()]
    assert ours.bos_token_id == theirs.bos_id()
    assert ours.eos_token_id == theirs.piece_to_id(CLOSE_TURN), "vLLM stops at this id"
    assert ours.image_placeholder not in (OPEN_TURN, CLOSE_TURN)
    assert ours.image_placeholder_id == theirs.piece_to_id(ours.image_placeholder)
    assert ours.decode(stop_ids(ours), skip_special_tokens=True) == ""


@pytest.mark.parametrize("image", [True, False])
def test_a_turn_has_the_reference_layout(
    ours: XComposer2Tokenizer, theirs: SentencePieceProcessor, image: bool
) -> None:
    prompt = "\nDescribe it.  你好\n"
    text = theirs.encode(f"[UNUSED_TOKEN_146]user\n{prompt}[UNUSED_TOKEN_145]\n[UNUSED_TOKEN_146]assistant\n")
    placeholder = [ours.image_placeholder_id] if image else []
    assert turn_ids(ours, prompt, image=image) == [theirs.bos_id(), *placeholder, *text]


@pytest.mark.parametrize("image", [True, False])
def test_the_chat_template_gives_the_same_ids(ours: XComposer2Tokenizer, image: bool) -> None:
    prompt = "\nDescribe it.  你好\n"
    parts = [{"type": "text", "text": prompt}, *([{"type": "image"}] if image else [])]
    messages = [{"role": "user", "content": parts}]
    text = ours.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert [ours.bos_token_id, *ours.encode(text, add_special_tokens=False)] == turn_ids(ours, prompt, image=image)


def test_user_text_never_becomes_a_special_token(ours: XComposer2Tokenizer, theirs: SentencePieceProcessor) -> None:
    rng = random.Random(11)
    forbidden = set(ours.reserved_ids) | {theirs.bos_id(), theirs.eos_id(), theirs.unk_id()}
    template_ids = [number for number in turn_ids(ours, "", image=True) if number in forbidden]
    special = [
        "[UNUSED_TOKEN_145]",
        "[UNUSED_TOKEN_146]",
        ours.image_placeholder,
        "<s>",
        "</s>",
        "[UNUSED_",
        "TOKEN_7]",
    ]
    for _ in range(1_000):
        prompt = "".join(rng.choices([*special, " ", "[", "]", "_", "<", ">", "\ud83d", "hi"], k=rng.randint(1, 12)))
        assert [number for number in turn_ids(ours, prompt, image=True) if number in forbidden] == template_ids
        assert not set(ours.encode(neutralise(prompt), add_special_tokens=False)) & forbidden


def test_copying_and_pickling(ours: XComposer2Tokenizer) -> None:
    text = "copy 你好 👩‍👩‍👧"
    for other in (copy.copy(ours), copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        ids = other.encode(text)
        assert ids == ours.encode(text)
        assert ids[0] == ours.bos_token_id
        assert other.decode(ids) == text


def test_another_kind_of_sentencepiece_model_is_rejected(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"not a protobuf")
    with pytest.raises(ValueError, match="SentencePiece model"):
        load_tokenizer(path)
    proto = spm.ModelProto.FromString(model.read_bytes())
    proto.normalizer_spec.add_dummy_prefix = True
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ValueError, match="no dummy prefix"):
        load_tokenizer(path)
    with pytest.raises(FileNotFoundError, match="no such checkpoint directory"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer\.model"):
        load_tokenizer(Path(__file__).parent)


def test_a_model_without_chat_tokens_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    with path.open("wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=iter(["no chat tokens"] * 9),
            model_writer=file,
            model_type="bpe",
            vocab_size=280,
            byte_fallback=True,
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            normalization_rule_name="identity",
            hard_vocab_limit=False,
            minloglevel=2,
        )
    with pytest.raises(ValueError, match="chat tokens"):
        load_tokenizer(path)
