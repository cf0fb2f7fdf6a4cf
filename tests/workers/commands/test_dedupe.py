"""Semantic filtering: exactly the greedy choice, however it is blocked; the right feature; what cannot be read."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sharecap_client.cli import app as cli
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from workers.commands import dedupe
from workers.commands.dedupe import CaptionEncoder, Pool, read

ROOT = Path(__file__).resolve().parents[3]
WORDS = ["a", "the", "red", "blue", "fox", "dog", "star", "runs", "jumps", "sleeps", "grows", "over", "snow", "grass"]


def greedy(vectors: np.ndarray, threshold: float) -> list[tuple[bool, float, list[int]]]:
    """Of each vector: whether it is kept, its cosine with the nearest kept one before it, and all as near as that."""
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    kept: list[int] = []
    told: list[tuple[bool, float, list[int]]] = []
    for row, vector in enumerate(vectors):
        cosines = [round(float(vector @ vectors[other]), 5) for other in kept]
        most = max(cosines, default=-math.inf)
        told.append((most < threshold, most, [k for k, value in enumerate(cosines) if value > most - 3e-5]))
        if most < threshold:
            kept.append(row)
    return told


def blocked(vectors: np.ndarray, threshold: float, block: int, chunk: int) -> tuple[list[Any], Pool]:
    pool = Pool(threshold, chunk=chunk)
    told = []
    for start in range(0, len(vectors), block):
        verdicts = pool.admit(torch.from_numpy(vectors[start : start + block]))
        told += list(zip(*(part.tolist() for part in verdicts), strict=True))
    return told, pool


def agree(vectors: np.ndarray, threshold: float, block: int, chunk: int) -> int:
    """Check that the blocked choice is the greedy one; return how many are kept."""
    expected = greedy(vectors, threshold)
    told, pool = blocked(vectors, threshold, block, chunk)
    assert len(told) == len(expected)
    for (kept, place, cosine), (right, most, nearest) in zip(told, expected, strict=True):
        assert kept == right
        assert cosine == pytest.approx(most, abs=2e-5)
        assert place in nearest if nearest else place == -1
    assert pool.size == sum(right for right, _, _ in expected)
    return pool.size


@settings(max_examples=150, deadline=None, database=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 60),
    width=st.integers(1, 6),
    threshold=st.floats(-1, 1) | st.sampled_from([1.0, 0.5, 0.0]),
    block=st.integers(1, 17),
    chunk=st.integers(1, 11),
    coarse=st.booleans(),
)
def test_it_is_the_greedy_choice(
    *, seed: int, count: int, width: int, threshold: float, block: int, chunk: int, coarse: bool
) -> None:
    """Coarse vectors repeat, and meet thresholds such as 0.5 exactly."""
    vectors = np.random.default_rng(seed).normal(size=(count, width))
    if coarse:
        vectors = np.round(vectors) + (np.round(vectors) == 0).all(1, keepdims=True)
    agree(vectors, threshold, block, chunk)


def test_many_wide_vectors_about_a_few_centres() -> None:
    random = np.random.default_rng(0)
    centres = random.normal(size=(300, 768))
    vectors = centres[random.integers(0, 300, 1200)] + 0.4 * random.normal(size=(1200, 768))
    assert 270 <= agree(vectors.astype(np.float32), 0.7, 512, 128) <= 300
    assert agree(np.repeat(vectors[:100], 3, axis=0), 1.0, 64, 64) == 100


def test_what_was_dropped_does_not_count() -> None:
    """A chain of steps, each close to the one before: every second one stays, for its neighbour is gone."""
    angles = np.radians([0, 20, 40, 60, 80])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1)
    for block in (1, 2, 5):
        told, _ = blocked(vectors, math.cos(math.radians(30)), block, 2)
        assert [kept for kept, _, _ in told] == [True, False, True, False, True]
        assert [place for _, place, _ in told] == [-1, 0, 0, 1, 1]


@pytest.mark.parametrize("wrong", [0.0, math.nan, math.inf])
def test_a_feature_without_direction_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="zero or not finite"):
        Pool(0.5).admit(torch.tensor([[1.0, 2.0], [wrong, wrong]]))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT with a vocabulary of words."""
    directory = tmp_path_factory.mktemp("bert")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **names).save_pretrained(directory)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=32, initializer_range=0.5, **sizes)
    BertModel(config).save_pretrained(directory)
    return directory


def test_the_feature_is_the_cls_token_whatever_is_beside_it(encoder: Path) -> None:
    texts = ["a red fox runs", "the dog", "", "a blue star grows over the snow " * 20, "a red fox runs", "zzz"]
    features = CaptionEncoder(str(encoder), "cpu").encode(texts)
    model = BertModel.from_pretrained(encoder).eval()
    for text, feature in zip(texts, features, strict=True):
        known = {word: number for number, word in enumerate(WORDS, 4)}
        ids = [2, *[known.get(word, 1) for word in text.split()][:30], 3]
        with torch.inference_mode():
            expected = model(torch.tensor([ids])).last_hidden_state[0, 0]
        assert torch.allclose(feature, expected, atol=1e-5)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_file_from_end_to_end(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dedupe, "BLOCK", 3)
    random = np.random.default_rng(1)
    texts = [" ".join(random.choice(WORDS, 6)) for _ in range(20)]
    rows: list[dict[str, Any]] = [{"id": f"v{k}", "text": text, "fps": 25.0} for k, text in enumerate(texts)]
    rows += [{"text": texts[4], "where": "雪 \ud83d"}, {"id": 7, "text": texts[5].upper()}]
    path = write(tmp_path / "captions.jsonl", rows)
    path.write_text("\ufeff" + path.read_text().replace("\n", "\n\n", 1))  # the second row is on line 3
    assert dedupe.main([str(path), "--threshold", "0.9999", "--field", "text", "--encoder", str(encoder)]) == 0
    told = capsys.readouterr()
    kept, dropped = rows_of(tmp_path / "captions.kept.jsonl"), rows_of(tmp_path / "captions.dropped.jsonl")
    assert told.out.startswith(
        f"kept {len(kept)} of 22 captions: {tmp_path}/captions.kept.jsonl\ndropped {len(dropped)}:"
    )
    assert told.err == ""
    assert [row for row in kept if row["nearest"] is None] == [{**rows[0], "nearest": None}]
    assert dropped[-2:] == [
        {**rows[20], "nearest": {"line": 6, "id": "v4", "similarity": 1.0}},
        {**rows[21], "nearest": {"line": 7, "id": "v5", "similarity": 1.0}},
    ]
    expected = greedy(CaptionEncoder(str(encoder), "cpu").encode([row["text"].lower() for row in rows]).numpy(), 0.9999)
    assert [row["text"] for row in kept] == [row["text"] for row, (k, _, _) in zip(rows, expected, strict=True) if k]
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"caption": ', "this is not JSON"),
        (b"\xff\xfe", "this is not UTF-8"),
        (b'{"caption": "a", "fps": NaN}', "NaN is no number"),
        (b'["a"]', "this is not a JSON object"),
        (b'{"id": 1, "text": "a"}', "there is no field 'caption', only 'id', 'text'"),
        (b"{}", "an empty object"),
        (b'{"caption": 3}', "the field 'caption' is no text"),
        (b'{"caption": ' + b"[" * 100_000, ""),
    ],
)
def test_a_broken_line_is_named_and_nothing_is_left(
    line: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_bytes(b'{"caption": "a"}\n\n' + line + b"\n")
    assert dedupe.main([str(path), "--threshold", "0.9", "--encoder", "/none"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"sharecap dedupe: {path} line 3: ")
    assert words in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


def test_half_a_surrogate_pair_is_a_caption_too(tmp_path: Path) -> None:
    [row] = read(write(tmp_path / "captions.jsonl", [{"caption": "a \ud83d star"}]), "caption")
    assert row.caption == "a ? star"


def test_what_cannot_work_is_one_line(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write(tmp_path / "captions.jsonl", [{"caption": "a fox"}])

    def refused(*arguments: object) -> str:
        assert dedupe.main([*map(str, arguments), "--threshold", "0.9"]) == 1
        error = capsys.readouterr().err
        assert error.startswith("sharecap dedupe: ") and error.count("\n") == 1
        return error

    assert "none.jsonl: No such file or directory" in refused(tmp_path / "none.jsonl")
    assert "Is a directory" in refused(tmp_path)
    assert "/no/such/encoder" in refused(good, "--encoder", "/no/such/encoder")
    assert "No such file or directory" in refused(good, "--encoder", encoder, "--kept", tmp_path / "no" / "kept")
    assert "three different files" in refused(good, "--encoder", encoder, "--kept", good)
    (tmp_path / "empty").mkdir()
    assert "config.json" in refused(good, "--encoder", tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions.jsonl", "empty"]


@pytest.mark.parametrize("threshold", ["1.1", "nan", "x"])
def test_a_threshold_is_a_cosine(threshold: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        dedupe.main(["captions.jsonl", "--threshold", threshold])
    assert "--threshold" in capsys.readouterr().err


def test_the_command_ends_with_a_line_and_a_status(tmp_path: Path) -> None:
    path = write(tmp_path / "captions.jsonl", [3])
    command = [sys.executable, "-m", cli.__name__, "dedupe", str(path), "--threshold", "0.9"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    told = f"sharecap dedupe: {path} line 1: this is not a JSON object\n"
    assert (run.returncode, run.stdout, run.stderr) == (1, "", told)
