"""Semantic filtering: the result equals greedy filtering for any block size; features; invalid files."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sharecap_client.cli import app as cli
from sharecap_client.datasets.rows import Row
from sharecap_client.datasets.store import Store
from sharecap_client.models import JobStatus
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from service.contract import model_hub
from tests.docs import pages
from workers.commands import dedupe
from workers.commands.dedupe import read
from workers.commands.similarity import CaptionEncoder, Pool

ROOT = Path(__file__).resolve().parents[3]
PAGE_FENCE = "console tested: tests/workers/commands/test_dedupe.py"
WORDS = ["a", "the", "red", "blue", "fox", "dog", "star", "runs", "jumps", "sleeps", "grows", "over", "snow", "grass"]


def greedy(vectors: np.ndarray, threshold: float) -> list[tuple[bool, float, list[int]]]:
    """Filter one vector at a time. Returns for each: whether it is kept, its largest cosine with the vectors kept
    before it, and the indices of all kept vectors with about that cosine."""
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    kept: list[int] = []
    results: list[tuple[bool, float, list[int]]] = []
    for row, vector in enumerate(vectors):
        cosines = [round(float(vector @ vectors[other]), 5) for other in kept]
        largest = max(cosines, default=-math.inf)
        nearest = [k for k, value in enumerate(cosines) if value > largest - 3e-5]
        results.append((largest < threshold, largest, nearest))
        if largest < threshold:
            kept.append(row)
    return results


def filter_in_blocks(vectors: np.ndarray, threshold: float, block: int, chunk: int) -> tuple[list[Any], Pool]:
    pool = Pool(threshold, chunk=chunk)
    results = []
    for start in range(0, len(vectors), block):
        columns = pool.admit(torch.from_numpy(vectors[start : start + block]))
        results += list(zip(*(column.tolist() for column in columns), strict=True))
    return results, pool


def check_against_greedy(vectors: np.ndarray, threshold: float, block: int, chunk: int) -> int:
    """Check that filtering in blocks equals greedy filtering. Returns how many vectors are kept."""
    expected = greedy(vectors, threshold)
    results, pool = filter_in_blocks(vectors, threshold, block, chunk)
    assert len(results) == len(expected)
    for (kept, index, cosine), (expected_kept, largest, nearest) in zip(results, expected, strict=True):
        assert kept == expected_kept
        assert cosine == pytest.approx(largest, abs=2e-5)
        assert index in nearest if nearest else index == -1
    assert pool.size == sum(expected_kept for expected_kept, _, _ in expected)
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
def test_blocks_give_the_same_result_as_greedy_filtering(
    *, seed: int, count: int, width: int, threshold: float, block: int, chunk: int, coarse: bool
) -> None:
    """Coarse vectors repeat, and their cosines are exactly equal to thresholds such as 0.5."""
    vectors = np.random.default_rng(seed).normal(size=(count, width))
    if coarse:
        vectors = np.round(vectors) + (np.round(vectors) == 0).all(1, keepdims=True)
    check_against_greedy(vectors, threshold, block, chunk)


def test_many_wide_vectors_around_a_few_centres() -> None:
    random = np.random.default_rng(0)
    centres = random.normal(size=(300, 768))
    vectors = centres[random.integers(0, 300, 1200)] + 0.4 * random.normal(size=(1200, 768))
    assert 270 <= check_against_greedy(vectors.astype(np.float32), 0.7, 512, 128) <= 300
    assert check_against_greedy(np.repeat(vectors[:100], 3, axis=0), 1.0, 64, 64) == 100


def test_dropped_captions_do_not_affect_later_ones() -> None:
    """Each vector is close to the previous one, so every second vector is kept: its neighbour was dropped."""
    angles = np.radians([0, 20, 40, 60, 80])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1)
    for block in (1, 2, 5):
        results, _ = filter_in_blocks(vectors, math.cos(math.radians(30)), block, 2)
        assert [kept for kept, _, _ in results] == [True, False, True, False, True]
        assert [index for _, index, _ in results] == [-1, 0, 0, 1, 1]


@pytest.mark.parametrize("wrong", [0.0, math.nan, math.inf])
def test_an_invalid_feature_raises(wrong: float) -> None:
    with pytest.raises(ValueError, match="zero or not finite"):
        Pool(0.5).admit(torch.tensor([[1.0, 2.0], [wrong, wrong]]))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("bert"), WORDS)


def write_encoder(directory: Path, words: list[str], seed: int = 0, initializer_range: float = 0.5) -> Path:
    """Write a tiny random BERT with a vocabulary of whole words."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: number for number, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **names).save_pretrained(directory)
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(
        vocab_size=len(vocabulary), max_position_embeddings=32, initializer_range=initializer_range, **sizes
    )
    BertModel(config).save_pretrained(directory)
    return directory


def test_the_feature_is_the_cls_token_regardless_of_the_batch(encoder: Path) -> None:
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


def test_filtering_a_file(
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
    output = capsys.readouterr()
    kept, dropped = rows_of(tmp_path / "captions.kept.jsonl"), rows_of(tmp_path / "captions.dropped.jsonl")
    assert output.out.startswith(
        f"kept {len(kept)} of 22 captions: {tmp_path}/captions.kept.jsonl\ndropped {len(dropped)}:"
    )
    assert output.err == ""
    assert [row for row in kept if row["nearest"] is None] == [{**rows[0], "nearest": None}]
    assert dropped[-2:] == [
        {**rows[20], "nearest": {"line": 6, "id": "v4", "similarity": 1.0}},
        {**rows[21], "nearest": {"line": 7, "id": "v5", "similarity": 1.0}},
    ]
    expected = greedy(CaptionEncoder(str(encoder), "cpu").encode([row["text"].lower() for row in rows]).numpy(), 0.9999)
    assert [row["text"] for row in kept] == [row["text"] for row, (k, _, _) in zip(rows, expected, strict=True) if k]
    assert len(list(tmp_path.iterdir())) == 3


def test_the_commands_of_the_page_print_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made, filtered, *shown = pages.commands(ROOT / "docs" / "dedupe.md", PAGE_FENCE)
    monkeypatch.chdir(tmp_path)
    Path("captions.jsonl").write_text("".join(f"{line}\n" for line in made.output))
    texts = " ".join(row["caption"].lower() for row in rows_of(Path("captions.jsonl")))
    write_encoder(tmp_path / "encoder", sorted(set(re.findall(r"\w+|[.,]", texts))), seed=4, initializer_range=0.2)
    capsys.readouterr()
    assert dedupe.main(filtered.text.removeprefix("sharecap dedupe ").split()) == 0
    pages.check(filtered, capsys.readouterr().out)
    for command in shown:
        pages.check(command, subprocess.check_output(command.text, shell=True, text=True))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"caption": ', "this is not JSON"),
        (b"\xff\xfe", "this is not UTF-8"),
        (b'{"caption": "a", "fps": NaN}', "NaN is not a JSON number"),
        (b'["a"]', "this is not a JSON object"),
        (b'{"id": 1, "text": "a"}', "the field 'caption' is missing; the fields are: 'id', 'text'"),
        (b"{}", "the fields are: none"),
        (b'{"caption": 3}', "the field 'caption' is not a string"),
        (b'{"caption": ' + b"[" * 100_000, ""),
    ],
)
def test_an_invalid_line_is_named_and_no_files_remain(
    line: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_bytes(b'{"caption": "a"}\n\n' + line + b"\n")
    assert dedupe.main([str(path), "--threshold", "0.9", "--encoder", "/none"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"sharecap dedupe: {path} line 3: ")
    assert words in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


def test_filtering_a_run(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    store = Store.create(run)
    texts = ["a red fox", "the dog", "A RED FOX"]
    store.append([Row(id=f"v{k}", video="x", state=JobStatus.COMPLETED, caption=text) for k, text in enumerate(texts)])
    arguments = [str(run), "--threshold", "0.9999", "--encoder", str(encoder)]
    assert dedupe.main(arguments) == 0
    assert capsys.readouterr().out == f"kept 2 of 3 captions: {run}\ndropped 1: excluded from exports, {run}\n"
    assert [row.excluded for row in store.rows()] == [None, None, "says the same as v0 (cosine 1.000)"]
    assert dedupe.main([*arguments, "--kept", "x.jsonl"]) == 1


def test_a_lone_surrogate_in_a_caption_is_replaced(tmp_path: Path) -> None:
    [row] = read(write(tmp_path / "captions.jsonl", [{"caption": "a \ud83d star"}]), "caption")
    assert row.caption == "a ? star"


def test_errors_are_reported_in_one_line(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write(tmp_path / "captions.jsonl", [{"caption": "a fox"}])

    def error_of(*arguments: object) -> str:
        assert dedupe.main([*map(str, arguments), "--threshold", "0.9"]) == 1
        error = capsys.readouterr().err
        assert error.startswith("sharecap dedupe: ") and error.count("\n") == 1
        return error

    assert "none.jsonl: No such file or directory" in error_of(tmp_path / "none.jsonl")
    assert "`sharecap batch INPUT --out " in error_of(tmp_path)
    assert "/no/such/encoder" in error_of(good, "--encoder", "/no/such/encoder")
    assert "No such file or directory" in error_of(good, "--encoder", encoder, "--kept", tmp_path / "no" / "kept")
    assert "three different files" in error_of(good, "--encoder", encoder, "--kept", good)
    (tmp_path / "empty").mkdir()
    assert "config.json" in error_of(good, "--encoder", tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions.jsonl", "empty"]


def test_the_default_encoder_without_a_network_is_one_line_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def head(url: str, **_: object) -> httpx.Response:
        raise httpx.ConnectError("no route")

    monkeypatch.setattr(model_hub.httpx, "head", head)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    good = write(tmp_path / "captions.jsonl", [{"caption": "a fox"}])
    assert dedupe.main([str(good), "--threshold", "0.9"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"sharecap dedupe: cannot download {dedupe.ENCODER}: ") and error.count("\n") == 1


@pytest.mark.parametrize("threshold", ["1.1", "nan", "x"])
def test_a_threshold_must_be_a_cosine(threshold: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        dedupe.main(["captions.jsonl", "--threshold", threshold])
    assert "--threshold" in capsys.readouterr().err


def test_the_command_exits_with_a_message_and_status_1(tmp_path: Path) -> None:
    path = write(tmp_path / "captions.jsonl", [3])
    command = [sys.executable, "-m", cli.__name__, "dedupe", str(path), "--threshold", "0.9"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    message = f"sharecap dedupe: {path} line 1: this is not a JSON object\n"
    assert (run.returncode, run.stdout, run.stderr) == (1, "", message)
