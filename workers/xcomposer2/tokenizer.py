"""Builds a fast tokenizer with SentencePiece's ids from tokenizer.model, and encodes chat turns with it.

The checkpoint contains only a slow Python tokenizer, which is remote code. This one is built from the SentencePiece
model: BPE merges in the order of the pieces' scores, byte fallback, no dummy prefix, no normalisation. The chat tokens
and the image placeholder are ordinary pieces; they are looked up by name, never by number.

The worker sends `turn_ids` to vLLM. The chat template produces the same ids in vLLM's own server (`renderer.py`). Both
neutralise user text first, so that it cannot contain a special token.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2 as spm
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from workers.xcomposer2.checkpoint import checkpoint_file

OPEN_TURN = "[UNUSED_TOKEN_146]"
CLOSE_TURN = "[UNUSED_TOKEN_145]"  # ends generation, as </s> does

# Messages have vLLM's "openai" format: a list of parts each. A message's images come before OPEN_TURN.
_CHAT_TEMPLATE = """\
{% for message in messages %}\
{% for part in message.content if part.type == 'image' %}[placeholder]{% endfor %}\
[open]{{ message.role }}
{{ message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('\\n') }}[close]
{% endfor %}\
{% if add_generation_prompt %}[open]assistant
{% endif %}"""

_RESERVED = re.compile(r"\[UNUSED_TOKEN_(\d+)\]")
_CONTROL = re.compile(r"<(/?s|unk|pad)>")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SPACE = "\u2581"  # SentencePiece's symbol for a space
_NUL = "\0 unused"  # replaces the piece U+0000, which SentencePiece never matches: it falls back to a byte
_BPE = 2  # sentencepiece_model.proto: TrainerSpec.ModelType.BPE
_NORMAL, _UNKNOWN, _CONTROL_TYPE, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6


def neutralise(text: str) -> str:
    """Return `text` with the chat tokens, the image placeholder and control pieces made harmless.

    Each is interrupted by a space, which cannot create another one. Lone surrogates, which no tokenizer accepts, are
    replaced by U+FFFD.
    """
    text = _SURROGATE.sub("\ufffd", text)
    text = _RESERVED.sub(r"[UNUSED TOKEN \1]", text)
    return _CONTROL.sub(r"< \1>", text)


def _turn_text(prompt: str) -> str:
    """Return the text of one chat turn up to the start of the answer, without `<s>` and image."""
    return f"{OPEN_TURN}user\n{neutralise(prompt)}{CLOSE_TURN}\n{OPEN_TURN}assistant\n"


def turn_ids(tokenizer: "XComposer2Tokenizer", prompt: str, *, image: bool) -> list[int]:
    """Return the prompt token ids of one chat turn.

    With `image`, one placeholder follows `<s>`; vLLM's processor replaces it with the image's tokens. The text is
    encoded in one call, as in the reference code.
    """
    placeholder = [tokenizer.image_placeholder_id] if image else []
    text: list[int] = tokenizer.encode(_turn_text(prompt), add_special_tokens=False)
    return [tokenizer.bos_token_id, *placeholder, *text]


def stop_ids(tokenizer: "XComposer2Tokenizer") -> list[int]:
    """Return the ids that end generation: CLOSE_TURN and `</s>`."""
    return [tokenizer.eos_token_id, tokenizer.piece_id(tokenizer.eos_piece)]


class XComposer2Tokenizer(PreTrainedTokenizerFast):
    """The fast tokenizer. `<s>`, `</s>` and `<unk>` are not registered as special tokens of transformers.

    SentencePiece never reads them from text, but transformers matches special tokens in text.
    """

    image_placeholder: str  # the piece that represents an image in a prompt
    surfaces: list[bytes]  # token id -> its UTF-8 bytes, possibly part of a character
    bos_piece: str
    eos_piece: str
    reserved_ids: frozenset[int]  # ids of the [UNUSED_TOKEN_n] pieces

    def piece_id(self, piece: str) -> int:
        """Return the id of the piece with this name."""
        return self.backend_tokenizer.token_to_id(piece)  # type: ignore[return-value]

    @property
    def image_placeholder_id(self) -> int:
        return self.piece_id(self.image_placeholder)

    @property
    def bos_token_id(self) -> int:
        return self.piece_id(self.bos_piece)

    @property
    def eos_token_id(self) -> int:
        """The id of CLOSE_TURN. vLLM also stops at the configuration's `eos_token_id`, which is `</s>`."""
        return self.piece_id(CLOSE_TURN)

    def _decode(self, token_ids: int | list[int], skip_special_tokens: bool = False, *_: Any, **__: Any) -> str:
        """Return SentencePiece's text of these ids, including malformed bytes (transformers' hook for `decode`)."""
        stream = TextStream(self, skip_reserved=skip_special_tokens)
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        return stream.push(ids) + stream.finish()


class TextStream:
    """Decodes a stream of token ids, emitting only whole characters. The total text equals SentencePiece's.

    Each byte that is not valid UTF-8 becomes U+FFFD.
    """

    def __init__(self, tokenizer: XComposer2Tokenizer, *, skip_reserved: bool = True) -> None:
        self._surfaces = tokenizer.surfaces
        self._skipped = tokenizer.reserved_ids if skip_reserved else frozenset()
        self._pending = b""

    def push(self, token_ids: Iterable[int]) -> str:
        """Return the text completed by these tokens. Ids outside the vocabulary have no text."""
        text = []
        for number in token_ids:
            surface = self._surface(number)
            if len(surface) == 1 and surface >= b"\x80":  # a byte of a longer character
                self._pending += surface
                whole, self._pending = _decode_utf8(self._pending, final=False)
                text.append(whole)
            else:  # any other token ends a run of bytes, even one without text
                text += [self.finish(), surface.decode()]
        return "".join(text)

    def _surface(self, number: int) -> bytes:
        known = 0 <= number < len(self._surfaces) and number not in self._skipped
        return self._surfaces[number] if known else b""

    def finish(self) -> str:
        """Return the remaining text at the end of the stream."""
        text, self._pending = _decode_utf8(self._pending, final=True)
        return text


def _decode_utf8(data: bytes, *, final: bool) -> tuple[str, bytes]:
    """Return the text of `data` and, unless `final`, the trailing bytes of an incomplete character."""
    text: list[str] = []
    while data:
        try:
            return "".join(text) + data.decode(), b""
        except UnicodeDecodeError as error:
            text.append(data[: error.start].decode())
            data = data[error.start :]
            if not final and error.reason == "unexpected end of data":
                break
            text.append("\ufffd")
            data = data[1:]
    return "".join(text), data


def load_tokenizer(model: str | Path, revision: str | None = None) -> XComposer2Tokenizer:
    """Build the tokenizer of a checkpoint directory, a hub id or a tokenizer.model file.

    Raises FileNotFoundError, and ValueError if the SentencePiece model does not have the properties of this family.
    """
    path = Path(model) if Path(model).is_file() else checkpoint_file(model, "tokenizer.model", revision)
    proto: Any = spm.ModelProto()  # type: ignore[attr-defined]
    try:
        proto.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's DecodeError differs between its implementations
        raise ValueError(f"{path} is not a SentencePiece model: {error}") from error
    _check(proto, path)
    placeholder = _placeholder(proto, path)
    tokenizer = XComposer2Tokenizer(tokenizer_object=_build(proto), chat_template=_chat_template(placeholder))
    tokenizer.image_placeholder = placeholder
    tokenizer.bos_piece, tokenizer.eos_piece = proto.trainer_spec.bos_piece, proto.trainer_spec.eos_piece
    tokenizer.surfaces = [_surface(piece, proto) for piece in proto.pieces]
    tokenizer.reserved_ids = frozenset(
        number for number, piece in enumerate(proto.pieces) if _RESERVED.fullmatch(piece.piece)
    )
    return tokenizer


def _chat_template(placeholder: str) -> str:
    template = _CHAT_TEMPLATE.replace("[open]", OPEN_TURN).replace("[close]", CLOSE_TURN)
    return template.replace("[placeholder]", placeholder)


def _surface(piece: Any, proto: Any) -> bytes:
    if piece.type == _BYTE:
        return bytes([int(piece.piece[1:-1], 16)])  # <0xE4>
    if piece.type == _CONTROL_TYPE:
        return b""
    text = proto.trainer_spec.unk_surface if piece.type == _UNKNOWN else piece.piece.replace(_SPACE, " ")
    return str(text).encode()


def _check(proto: Any, path: Path) -> None:
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    expected = {
        "BPE": trainer.model_type == _BPE,
        "byte fallback": trainer.byte_fallback,
        "no dummy prefix": not normalizer.add_dummy_prefix,
        "no whitespace stripping": not normalizer.remove_extra_whitespaces,
        "escaped whitespace": normalizer.escape_whitespaces,
        "no normalisation": not normalizer.precompiled_charsmap,
    }
    wrong = [name for name, holds in expected.items() if not holds]
    if wrong:
        raise ValueError(f"{path}: expected a SentencePiece model with {', '.join(wrong)}")
    known = {piece.type for piece in proto.pieces} <= {_NORMAL, _UNKNOWN, _CONTROL_TYPE, _USER_DEFINED, _BYTE}
    user_defined = {piece.piece for piece in proto.pieces if piece.type == _USER_DEFINED}
    if not known or not {OPEN_TURN, CLOSE_TURN} <= user_defined:
        raise ValueError(f"{path}: the chat tokens {OPEN_TURN} and {CLOSE_TURN} are not among its pieces")


def _placeholder(proto: Any, path: Path) -> str:
    """Return the first reserved piece that is not a chat token."""
    for piece in proto.pieces:
        if (
            piece.type == _USER_DEFINED
            and _RESERVED.fullmatch(piece.piece)
            and piece.piece not in (OPEN_TURN, CLOSE_TURN)
        ):
            return str(piece.piece)
    raise ValueError(f"{path}: no [UNUSED_TOKEN_n] piece is left for the image placeholder")


def _build(proto: Any) -> Tokenizer:
    """Return the `tokenizers` object, which encodes and decodes like SentencePiece."""
    vocab = {(_NUL if piece.piece == "\0" else piece.piece): number for number, piece in enumerate(proto.pieces)}
    unk, bos = proto.trainer_spec.unk_piece, proto.trainer_spec.bos_piece
    tokenizer = Tokenizer(BPE(vocab, list(_merges(proto)), unk_token=unk, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.add_tokens(
        [
            # Reserved pieces are "special": decoding an answer skips them.
            AddedToken(piece.piece, normalized=False, special=bool(_RESERVED.fullmatch(piece.piece)))
            for piece in proto.pieces
            if piece.type == _USER_DEFINED
        ]
    )
    silent = [piece.piece for piece in proto.pieces if piece.type in (_UNKNOWN, _CONTROL_TYPE)]
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(Regex("^(" + "|".join(re.escape(piece) for piece in silent) + ")$"), ""),
            decoders.Replace(_NUL, "\0"),
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, vocab[bos])]
    )
    return tokenizer


def _merges(proto: Any) -> Iterator[tuple[str, str]]:
    """Yield every pair that merges into a piece, in SentencePiece's order: highest score first."""
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == _NORMAL and piece.piece != "\0"}
    for piece in sorted(scores, key=lambda piece: -scores[piece]):
        for cut in range(1, len(piece)):
            if piece[:cut] in scores and piece[cut:] in scores:
                yield piece[:cut], piece[cut:]
