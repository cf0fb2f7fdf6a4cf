"""`sharecap stats`: figures that were counted by hand, the tagger, the table, JSON and PNG."""

import json
from pathlib import Path

import pytest
from PIL import Image
from sharecap_client.datasets.quality.summary import MAX_BINS, Values, summarize
from sharecap_client.datasets.quality.words import Tagger, words
from sharecap_client.datasets.rows import Row
from sharecap_client.datasets.store import Store

from tests.client.conftest import Sharecap
from tests.client.datasets.conftest import row

TAGGED = """young/adjective woman/noun wearing/verb bright/adjective jacket/noun slowly/adverb walks/verb
across/preposition three/numeral narrow/adjective bridges/noun then/adverb she/other quickly/adverb turns/verb"""


def test_the_tagger_knows_the_classes_of_common_words() -> None:
    expected = [pair.split("/") for pair in TAGGED.split()]
    text = " ".join(word for word, _ in expected)
    counts = Tagger().classes(text)
    assert counts == {name: sum(one == name for _, one in expected) for name in counts}
    assert Tagger().classes("... , !") == {} and Tagger().classes("") == {}


def test_words() -> None:
    assert words("A well-known dog's 3 naïve BALLS, 星.") == ["a", "well-known", "dog's", "3", "naïve", "balls", "星"]


def test_figures(rows: list[Row]) -> None:
    report = summarize(
        [row.model_copy(update={"caption": "Two red dogs run."}) if row.caption else row for row in rows[2:]]
    ).report()
    assert (report["rows"], report["captions"], report["excluded"]) == (9, 7, 1)
    assert (report["states"], report["failures"]) == ({"completed": 8, "failed": 1}, {"decode_failed": 1})
    assert report["words_per_caption"]["median"] == 4 and report["clip_seconds"]["mean"] == 4
    assert report["differentials_per_clip"]["histogram"] == {"0": 0, "1": 0, "2": 7}
    assert report["distinct_words"] == len({"two", "red", "dogs", "run", "trigger", "an", "edited", "caption"})
    assert sum(report["word_classes_percent"].values()) == pytest.approx(100)


def test_values() -> None:
    values = Values()
    assert (values.mean, values.quantile(0.5), values.histogram(5)) == (None, None, {"0": 0})
    for value in (1, 2, 2, 9, 100_000):
        values.add(value)
    assert (values.quantile(0), values.quantile(0.5), values.quantile(1)) == (1, 2, 100_000)
    histogram = values.histogram(5)
    assert len(histogram) == MAX_BINS and sum(histogram.values()) == 5 and histogram["0"] == 3


def test_the_command(sharecap: Sharecap, store: Store, tmp_path: Path) -> None:
    png = tmp_path / "figures.png"
    result = sharecap("stats", store.directory, "--png", png)
    assert result.status == 0 and "1 × decode_failed" in result.out and "nouns, %" in result.out
    with Image.open(png) as image:
        assert image.format == "PNG" and image.width > 800 and len(image.convert("L").getcolors() or []) > 10
    assert json.loads(sharecap("stats", store.directory, "--json").out)["captions"] == 8
    assert "No such file" in sharecap("stats", store.directory, "--png", tmp_path / "none" / "x.png").err


def test_a_file_of_captions(sharecap: Sharecap, tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text('{"text": "A dog runs."}\n\n{"text": "Dogs run."}\n')
    report = json.loads(sharecap("stats", path, "--field", "text", "--json").out)
    assert (report["captions"], report["distinct_words"]) == (2, 5)
    assert "line 1 has no caption 'caption'" in sharecap("stats", path).err
    assert sharecap("stats", "nothere.jsonl").err == "error: nothere.jsonl: no such file or directory\n"


def test_a_run_without_captions(sharecap: Sharecap, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "empty")
    assert "unknown" in sharecap("stats", store.directory).out
    store.append([row(tmp_path, "a.mp4", state="failed", caption=None)])
    assert "1 × failed" in sharecap("stats", store.directory).out
